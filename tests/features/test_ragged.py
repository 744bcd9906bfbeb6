"""Records of images with different numbers of tokens: back from memory and disk as they were, damage told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lockadapt.architectures.kept import ImageRecord, RaggedFeatures
from lockadapt.data.sample import ImageRef
from lockadapt.errors import DiskError, VerificationError
from lockadapt.features.folder import FeatureFolder
from lockadapt.features.in_memory import FeatureInputs
from lockadapt.features.on_disk import DiskFeatures
from lockadapt.features.ragged_shards import RaggedLayout, gather_ragged, open_ragged, write_ragged

CHANNELS = {"last": 3, "deep 0": 5}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


def record(seed: int, tokens: tuple[int, int]) -> ImageRecord:
    noise = torch.Generator().manual_seed(seed)
    levels = {
        name: torch.randn(count, width, generator=noise) * 10**seed
        for count, (name, width) in zip(tokens, CHANNELS.items(), strict=True)
    }
    return ImageRecord(levels, {"size": (seed, *tokens)}, {"image_grid_thw": (1, seed, 2**40)})


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=5),
    order=st.lists(st.integers(0, 4), min_size=1, max_size=6),
    stored=st.sampled_from(sorted(DTYPES)),
)
def test_records_come_back(
    tokens: list[tuple[int, int]], order: list[int], stored: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("shards") / "shard"
    records = [record(number, counts) for number, counts in enumerate(tokens)]
    keys = [f"key {number}" for number in range(len(records))]
    layout = RaggedLayout.tried(records, stored)
    write_ragged(path, "f", keys, records, layout)
    first = path.read_bytes()
    write_ragged(path, "f", keys, records, layout)
    assert path.read_bytes() == first
    shard = open_ragged(path, "f", layout, thorough=True)
    assert shard.keys == tuple(keys)
    rows = [number % len(records) for number in order]
    kept = gather_ragged([(shard, row) for row in rows], layout)
    assert all(level.dtype == DTYPES[stored] for level in kept.levels.values())
    worst = 0.0
    for row, made in zip(rows, kept.records(torch.float32), strict=True):
        assert (made.facts, made.keys) == (records[row].facts, records[row].keys)
        for name, truth in records[row].levels.items():
            assert made.levels[name].shape == truth.shape
            if stored == "float32":
                assert torch.equal(made.levels[name], truth)
            elif truth.numel():
                scale = truth.abs().amax(0) / 254 if stored == "int8" else truth.abs() / 256
                difference = (made.levels[name] - truth).abs()
                assert (difference <= scale * 1.001).all()
                worst = max(worst, float(difference.max()))
    assert worst <= shard.drift.largest * 1.001
    batch = kept.batch()
    assert batch["processor_keys"] == ("image_grid_thw",)
    assert batch["image_grid_thw"].tolist() == [[1, row, 2**40] for row in rows]


def test_memory_keeps_the_same_records() -> None:
    records = [record(number, (number + 1, 2)) for number in range(3)]
    joined = RaggedFeatures.joined(records)
    assert len(joined) == 3
    assert joined.tokens == {"last": (1, 2, 3), "deep 0": (2, 2, 2)}
    again = joined.to("cpu").records(torch.float32)
    assert all(
        torch.equal(made.levels[name], truth.levels[name])
        for made, truth in zip(again, records, strict=True)
        for name in CHANNELS
    )
    assert torch.equal(joined.negative().levels["last"], -joined.levels["last"])


@pytest.fixture
def shard(tmp_path: Path) -> tuple[Path, RaggedLayout]:
    records = [record(0, (2, 3)), record(1, (4, 1))]
    layout = RaggedLayout.tried(records, "int8")
    write_ragged(tmp_path / "shard", "f", ["a", "b"], records, layout)
    return tmp_path / "shard", layout


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(1, 2000))
def test_a_shard_that_is_cut_off_is_damaged(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("cut") / "shard"
    records = [record(0, (2, 3)), record(1, (4, 1))]
    layout = RaggedLayout.tried(records, "bfloat16")
    write_ragged(path, "f", ["a", "b"], records, layout)
    data = path.read_bytes()
    path.write_bytes(data[: max(0, len(data) - cut)])
    with pytest.raises(VerificationError) as error:
        open_ragged(path, "f", layout)
    assert error.value.where == str(path)


@settings(max_examples=40, deadline=None)
@given(at=st.integers(0, 10**6), value=st.integers(0, 255))
def test_a_changed_byte_never_passes_unseen(
    at: int, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("byte") / "shard"
    records = [record(0, (2, 3)), record(1, (4, 1))]
    layout = RaggedLayout.tried(records, "float32")
    write_ragged(path, "f", ["a", "b"], records, layout)
    data = bytearray(path.read_bytes())
    same = data[at % len(data)] == value
    data[at % len(data)] = value
    path.write_bytes(bytes(data))
    try:
        opened = open_ragged(path, "f", layout, thorough=True)
    except VerificationError:
        assert not same
        return
    kept = gather_ragged([(opened, 0), (opened, 1)], layout).records(torch.float32)
    for made, truth in zip(kept, records, strict=True):
        assert (made.facts, made.keys) == (truth.facts, truth.keys)
        assert all(torch.equal(made.levels[name], truth.levels[name]) for name in CHANNELS)


@pytest.mark.parametrize("change", ["fingerprint", "channels", "stored"])
def test_a_shard_of_another_cache_is_refused(change: str, shard: tuple[Path, RaggedLayout]) -> None:
    path, layout = shard
    other = {
        "fingerprint": layout,
        "channels": RaggedLayout({**CHANNELS, "last": 4}, "int8", 1),
        "stored": RaggedLayout(CHANNELS, "bfloat16", 1),
    }[change]
    with pytest.raises(VerificationError, match="other features"):
        open_ragged(path, "g" if change == "fingerprint" else "f", other)


class Pictures:
    """Image inputs whose pictures keep their sizes."""

    max_pixels, replacement = 10**6, None

    def shown(self, image: ImageRef) -> ImageRef:
        return image

    def of_pictures(self, pictures: list[Image.Image]) -> dict[str, Any]:
        return {"pixel_values": [torch.from_numpy(np.array(picture)).float() for picture in pictures]}


def tower(part: Mapping[str, Any]) -> list[ImageRecord]:
    """A token a row of the picture, and one a column at the second level."""
    made = []
    for values in part["pixel_values"]:
        rows, columns = values.mean(1), values.mean(0)
        levels = {"last": rows, "deep 0": torch.cat([columns, columns[:, :2]], 1)}
        made.append(ImageRecord(levels, {"size": tuple(values.shape[:2])}, {"image_sizes": (len(rows),)}))
    return made


def pictures(folder: Path, count: int) -> list[ImageRef]:
    made = []
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (5 + number, 9 - number, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
        made.append(ImageRef(str(number), path=folder / f"{number}.png"))
    return made


def disk(root: Path, *, limit: float = 1.0, stored: str = "float32") -> DiskFeatures:
    folder = FeatureFolder(root, {"stored": stored}, limit, print, 300, thorough=True)
    return DiskFeatures(Pictures(), tower, folder, batch_size=1)  # type: ignore[arg-type]


def test_memory_and_disk_give_the_towers_records(tmp_path: Path) -> None:
    images = pictures(tmp_path, 5)
    memory = FeatureInputs(Pictures(), tower, 2)  # type: ignore[arg-type]
    memory.fill(images[:3])
    kept = disk(tmp_path / "cache")
    assert kept.fill(images) == 5
    assert len(list((tmp_path / "cache").rglob("shard-*"))) > 1
    order = [4, 0, 4, 2]
    truth = [tower(Pictures().of_pictures([Image.open(tmp_path / f"{n}.png")]))[0] for n in order]
    again = disk(tmp_path / "cache")
    for inputs in (memory, kept, again):
        batch = inputs([images[number] for number in order])
        assert set(batch) == {"image_features", "image_sizes", "processor_keys"}
        for made, wanted in zip(batch["image_features"].records(torch.float32), truth, strict=True):
            assert made.facts == wanted.facts
            assert all(torch.equal(made.levels[name], wanted.levels[name]) for name in CHANNELS)
    assert again.fill(images) == 0


def test_a_damaged_shard_is_computed_again(tmp_path: Path) -> None:
    images = pictures(tmp_path, 3)
    before = disk(tmp_path / "cache")(images)["image_features"]
    file = next((tmp_path / "cache").rglob("shard-*"))
    file.write_bytes(file.read_bytes()[:-1])
    after = disk(tmp_path / "cache")(images)["image_features"]
    assert all(torch.equal(before.levels[name], after.levels[name]) for name in CHANNELS)


def test_more_than_the_limit_is_refused_before_and_while_it_is_computed(tmp_path: Path) -> None:
    images = pictures(tmp_path, 5)
    with pytest.raises(DiskError, match="feature_disk_gib"):
        disk(tmp_path / "small", limit=100 / 2**30).fill(images)
    # Tried images take little, others much.
    wide = tmp_path / "wide.png"
    Image.new("RGB", (3000, 2)).save(wide)
    thin = [ImageRef(f"thin {n}", picture=Image.new("RGB", (2, 2), (n, 0, 0))) for n in range(15)]
    many = [*thin, ImageRef("wide", path=wide), ImageRef("last", picture=Image.new("RGB", (2, 2)))]
    kept = disk(tmp_path / "other", limit=30_000 / 2**30)
    with pytest.raises(DiskError, match="take more than"):
        kept.fill(many)
