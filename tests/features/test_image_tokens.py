"""Codes of images: each image once, in the right order, small in memory, and kept on disk only for what made them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lockadapt.architectures.janus.image_tokenizer import encode_pixels, image_codec, load_image_tokenizer
from lockadapt.data.sample import ImageRef
from lockadapt.errors import DataError
from lockadapt.features.image_tokens import (
    CROPS,
    ImageTokenInputs,
    TokenizerSteps,
    image_token_inputs,
    ten_crops,
)
from tests.support.tiny import tiny_image_tokenizer


def files(folder: Path, number: int) -> list[ImageRef]:
    generator = np.random.default_rng(0)
    made = []
    for index in range(number):
        path = folder / f"{index}.png"
        Image.fromarray(generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
        made.append(ImageRef(str(path), path=path))
    return made


class Counted:
    """Encodes by brightness, and counts what it encodes."""

    def __init__(self, top: int) -> None:
        self.top, self.seen = top, 0

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        self.seen += len(values)
        rows = (values.flatten(1)[:, :3] * self.top).long()
        return rows.clamp(0, self.top - 1)


def values(pictures: list[Image.Image]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(picture)).float() / 255 for picture in pictures])


@pytest.mark.parametrize(("codes", "dtype"), [(65_536, np.uint16), (65_537, np.int32)])
def test_each_image_once(tmp_path: Path, codes: int, dtype: Any) -> None:
    images, encode = files(tmp_path, 5), Counted(codes)
    inputs = ImageTokenInputs(TokenizerSteps(values, encode, codes), 10_000, batch_size=2)
    actual = inputs([images[3], images[0], images[3]])["image_token_ids"]
    assert actual.dtype == torch.int64
    assert encode.seen == 2
    again = inputs(images)["image_token_ids"]
    assert encode.seen == 5
    assert torch.equal(actual, again[[3, 0, 3]])
    assert {row.dtype for row in inputs._rows.values()} == {np.dtype(dtype)}
    assert inputs([]) == {}


def test_crops_stand_beside_the_whole(tmp_path: Path) -> None:
    images, encode = files(tmp_path, 3), Counted(100)
    sized = TokenizerSteps(lambda some: values([picture.resize((20, 20)) for picture in some]), encode, 100)
    cropped = ImageTokenInputs(sized, 10_000, crops=True)
    actual = cropped(images)
    assert encode.seen == 3 * 11
    assert torch.equal(
        actual["image_token_ids"],
        ImageTokenInputs(TokenizerSteps(values, Counted(100), 100), 10_000)(images)["image_token_ids"],
    )
    assert actual["image_crops"].shape == (3, 10, 3)
    with Image.open(images[1].path) as picture:
        expected = Counted(100)(values([crop.resize((20, 20)) for crop in ten_crops(picture)]))
    assert torch.equal(actual["image_crops"][1], expected)


def test_disk_keeps_crops_apart(tmp_path: Path) -> None:
    images = files(tmp_path, 2)

    def inputs(crops: bool, encode: Counted) -> ImageTokenInputs:
        sized = lambda some: values([picture.resize((20, 20)) for picture in some])  # noqa: E731
        return ImageTokenInputs(
            TokenizerSteps(sized, encode, 100, "b" * 40), 10_000, folder=tmp_path, crops=crops
        )

    first, second, third = (Counted(100) for _ in range(3))
    whole, made = inputs(False, first)(images), inputs(True, second)(images)
    again = inputs(True, third)(images)
    assert (first.seen, second.seen, third.seen) == (2, 22, 0)
    assert torch.equal(whole["image_token_ids"], again["image_token_ids"])
    assert torch.equal(made["image_crops"], again["image_crops"])


def test_disk(tmp_path: Path) -> None:
    (tmp_path / "i").mkdir()
    images, cache = files(tmp_path / "i", 4), tmp_path / "cache"

    def make(digest: str, encode: Counted) -> ImageTokenInputs:
        return ImageTokenInputs(TokenizerSteps(values, encode, 300, digest), 10_000, folder=cache)

    first, second, other = Counted(300), Counted(300), Counted(300)
    expected = make("a" * 40, first)(images[:3])["image_token_ids"]
    renamed = ImageRef("another name", data=images[1].path.read_bytes() if images[1].path else b"")
    actual = make("a" * 40, second)([images[2], renamed, images[3]])["image_token_ids"]
    assert torch.equal(actual[:2], expected[[2, 1]])
    assert (first.seen, second.seen) == (3, 1)
    make("b" * 40, other)(images)
    assert other.seen == 4
    file = next(cache.glob("codes-whole-aaaa*"))
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(DataError, match="damaged"):
        make("a" * 40, Counted(300))(images)


def test_is_what_the_stock_tokenizer_says(tmp_path: Path) -> None:
    tokenizer = load_image_tokenizer(tiny_image_tokenizer(tmp_path / "vq"))
    images = files(tmp_path, 6)
    inputs = image_token_inputs(
        image_codec(tokenizer.model), tokenizer.image_processor, 10_000, folder=tmp_path / "cache"
    )
    actual = inputs(images)["image_token_ids"]
    pictures = [Image.open(image.path) for image in images if image.path]
    pixels = tokenizer.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
    assert torch.equal(actual, encode_pixels(tokenizer.model, pixels))
    assert actual.shape == (6, 16)
    tokenizer.model.quant_conv.bias.data += 1.0
    other = image_token_inputs(
        image_codec(tokenizer.model), tokenizer.image_processor, 10_000, folder=tmp_path / "cache"
    )
    assert other.file != inputs.file


def test_where_ten_crops_lie() -> None:
    across, down = np.meshgrid(np.arange(110), np.arange(55))
    picture = Image.fromarray(np.stack([across, down, 0 * down], -1).astype(np.uint8))
    crops = [np.asarray(crop) for crop in ten_crops(picture)]
    assert len(crops) == CROPS
    assert {crop.shape for crop in crops} == {(50, 100, 3)}
    assert [tuple(crop[0, 0, :2]) for crop in crops[:5]] == [(0, 0), (10, 0), (0, 5), (10, 5), (5, 2)]
    for crop, mirrored in zip(crops[:5], crops[5:], strict=True):
        assert (crop[:, ::-1] == mirrored).all()
