"""Images as image token ids: each image is tokenised once and kept, in memory and, if asked, on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from lockadapt.architectures.base import ImageCodec
from lockadapt.data.image_bytes import content_keys, picture_of
from lockadapt.data.images import open_image
from lockadapt.data.ledger import ImageLedger
from lockadapt.data.sample import ImageRef
from lockadapt.errors import DataError
from lockadapt.files import write_bytes

SMALL = 65_536
"""Codebooks up to this size are kept in 16 bits."""

CROPS = 10
SHARE = 1 / 1.1
"""Side of a crop in sides of the picture, as LlamaGen tokenises its training images (arXiv 2406.06525)."""


@dataclass(frozen=True)
class TokenizerSteps:
    """How an image tokenizer turns pictures into image tokens.

    Attributes:
        pixels: RGB pictures -> pixel values (n, 3, side, side).
        encode: pixel values -> image token ids int64 (n, tokens), without gradient.
        codebook_size: entries of the codebook.
        digest: of the image tokenizer and its preprocessing; names the file that image token ids are kept in.
    """

    pixels: Callable[[list[Image.Image]], torch.Tensor]
    encode: Callable[[torch.Tensor], torch.Tensor]
    codebook_size: int
    digest: str = ""


class ImageTokenInputs:
    """Gives `{"image_token_ids": int64 (images, tokens)}`; see `lockadapt.data.pixels.ImageInputs`.

    With `crops` also `"image_crops"`, int64 (images, CROPS, tokens): those of ten crops of each image.

    Args:
        tokenizer: what turns pictures into image tokens.
        max_pixels: larger images are refused before decoding.
        batch_size: images that are tokenised at a time.
        folder: where image token ids are kept between runs; None for nowhere.
        crops: whether the crops of each image are tokenised as well.
    """

    replacement: Image.Image | None = None

    def __init__(
        self,
        tokenizer: TokenizerSteps,
        max_pixels: int,
        *,
        batch_size: int = 64,
        folder: Path | None = None,
        crops: bool = False,
    ) -> None:
        self.tokenizer, self.max_pixels, self.batch_size = tokenizer, max_pixels, batch_size
        self.codebook_size = tokenizer.codebook_size
        self.dtype = np.uint16 if self.codebook_size <= SMALL else np.int32
        self.crops, name = (
            crops,
            f"codes-{'ten-crops' if crops else 'whole'}-{tokenizer.digest[:32]}.safetensors",
        )
        self.file = None if folder is None else folder / name
        self._rows: dict[str, np.ndarray[Any, Any]] = {}

    def fill(self, images: Iterable[ImageRef], progress: Callable[[int, int], None] | None = None) -> int:
        """Tokenises the images that are not known yet.

        Args:
            images: may repeat.
            progress: told (done, all).

        Returns:
            How many images were not known yet.

        Raises:
            DataError: an image cannot be read, or the file on disk is damaged.
            DiskError: the file cannot be written.
        """
        new = {image.key: image for image in images if image.key not in self._rows}
        ledger = ImageLedger(self.file.parent) if self.file is not None else None
        contents = content_keys(new, self.max_pixels, ledger=ledger) if ledger is not None else {}
        stored = self._read() if contents else {}
        for key, content in contents.items():
            if content in stored:
                self._rows[key] = stored[content]
        todo = [key for key in new if key not in self._rows]
        for start in range(0, len(todo), self.batch_size):
            part = todo[start : start + self.batch_size]
            pictures = [
                picture_of(new[key], contents[key], self.max_pixels)
                if contents
                else open_image(new[key], self.max_pixels)
                for key in part
            ]
            views = [[picture, *ten_crops(picture)] if self.crops else [picture] for picture in pictures]
            rows = self._encoded([view for some in views for view in some]).reshape(
                len(part), len(views[0]), -1
            )
            self._rows.update(zip(part, rows, strict=True))
            if progress:
                progress(start + len(part), len(todo))
        if todo and self.file is not None:
            self._write({**stored, **{contents[key]: self._rows[key] for key in todo}})
        return len(todo)

    def __call__(self, images: Sequence[ImageRef]) -> dict[str, torch.Tensor]:
        """Image token ids in the order of the images, and those of their crops where there are any."""
        if not images:
            return {}
        if any(image.key not in self._rows for image in images):
            self.fill(images)
        rows = torch.from_numpy(np.stack([self._rows[image.key] for image in images]).astype(np.int64))
        return {"image_token_ids": rows[:, 0], **({"image_crops": rows[:, 1:]} if self.crops else {})}

    def _encoded(self, pictures: list[Image.Image]) -> np.ndarray[Any, Any]:
        parts = [
            self.tokenizer.encode(self.tokenizer.pixels(pictures[start : start + self.batch_size]))
            for start in range(0, len(pictures), self.batch_size)
        ]
        return torch.cat(parts).cpu().numpy().astype(self.dtype)

    def _read(self) -> dict[str, np.ndarray[Any, Any]]:
        if self.file is None or not self.file.is_file():
            return {}
        try:
            tensors = load_file(self.file)
            keys, rows = tensors["keys"], tensors["codes"]
        except (SafetensorError, KeyError) as error:
            raise DataError(
                "the cached image tokens are damaged", where=str(self.file), fix="remove the file"
            ) from error
        return {bytes(key).hex(): row for key, row in zip(keys, rows, strict=True)}

    def _write(self, rows: dict[str, np.ndarray[Any, Any]]) -> None:
        assert self.file is not None
        tensors = {
            "keys": np.stack([np.frombuffer(bytes.fromhex(key), np.uint8) for key in rows]),
            "codes": np.stack(list(rows.values())),
        }
        write_bytes(self.file, save(tensors), fix="free space, or keep image tokens elsewhere")


def image_token_inputs(
    codec: ImageCodec,
    image_processor: Any,
    max_pixels: int,
    *,
    folder: Path | None = None,
    batch_size: int = 64,
    crops: bool = False,
) -> ImageTokenInputs:
    """Image token ids of an image tokenizer; images are prepared as by the model's own image processor.

    Args:
        codec: the image tokenizer.
        image_processor: the model's.
        max_pixels: as `ImageTokenInputs`.
        folder: as `ImageTokenInputs`.
        batch_size: as `ImageTokenInputs`.
        crops: as `ImageTokenInputs`.

    Returns:
        Image inputs, not filled yet.
    """

    def pixels(pictures: list[Image.Image]) -> torch.Tensor:
        size = {"height": codec.side, "width": codec.side}
        return image_processor(images=pictures, size=size, return_tensors="pt")["pixel_values"]

    digest = ""
    if folder is not None:
        settings = f"{codec.digest()} {sorted(image_processor.to_dict().items(), key=str)}"
        digest = hashlib.sha256(settings.encode()).hexdigest()
    steps = TokenizerSteps(pixels, codec.encode, codec.codebook_size, digest)
    return ImageTokenInputs(steps, max_pixels, batch_size=batch_size, folder=folder, crops=crops)


def ten_crops(picture: Image.Image) -> list[Image.Image]:
    """Four corners, the middle, and the five mirrored; each SHARE as wide and as high as the picture."""
    wide, high = max(1, round(picture.width * SHARE)), max(1, round(picture.height * SHARE))
    right, below = picture.width - wide, picture.height - high
    corners = [(0, 0), (right, 0), (0, below), (right, below), (right // 2, below // 2)]
    crops = [picture.crop((x, y, x + wide, y + high)) for x, y in corners]
    return [*crops, *(ImageOps.mirror(crop) for crop in crops)]
