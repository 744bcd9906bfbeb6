"""The feature cache on disk: right features for right bytes, in one copy, whoever is killed and whatever is damaged."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lockadapt.data.pixels import PixelInputs
from lockadapt.data.sample import ImageRef
from lockadapt.errors import DataError, DiskError
from lockadapt.features import folder as feature_folder
from lockadapt.features.folder import FeatureFolder
from lockadapt.features.on_disk import DiskFeatures
from lockadapt.features.shards import drift_of, packed, unpacked

TOKENS, CHANNELS = 4, 6
IMAGE = TOKENS * CHANNELS * 4


def processor(images: list[Image.Image], return_tensors: str) -> dict[str, torch.Tensor]:
    small = [np.asarray(image.resize((8, 8)), dtype=np.float32).transpose(2, 0, 1) / 255 for image in images]
    return {"pixel_values": torch.from_numpy(np.stack(small))}


WEIGHT = torch.randn(192, TOKENS * CHANNELS, generator=torch.Generator().manual_seed(0))


def tower(part: dict[str, torch.Tensor]) -> torch.Tensor:
    # Image by image, so that a feature does not depend on its neighbours in the batch, not even by rounding.
    return torch.stack([(v.flatten() @ WEIGHT).view(TOKENS, CHANNELS) for v in part["pixel_values"]])


def refs(folder: Path, count: int, first: int = 0) -> list[ImageRef]:
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for number in range(first, first + count):
        path = folder / f"{number}.png"
        if not path.exists():
            noise = np.random.default_rng(number).integers(0, 256, (9, 11, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path)
        images.append(ImageRef(str(path), path=path))
    return images


def disk(
    root: Path,
    *,
    stored: str = "float32",
    each: int = 3,
    limit: float = 1.0,
    note: Callable[[str], None] = print,
    seen: Callable[[Any], torch.Tensor] = tower,
    replacement: Image.Image | None = None,
    workers: int = 0,
    thorough: bool = False,
    tower_name: str = "a",
) -> DiskFeatures:
    """A cache with `each` float32 images in a shard."""
    folder = FeatureFolder(root, {"stored": stored, "tower": tower_name}, limit, note, each * IMAGE, thorough)
    return DiskFeatures(PixelInputs(processor, 10_000, replacement), seen, folder, workers, batch_size=2)


def features(image: ImageRef) -> torch.Tensor:
    return tower(PixelInputs(processor, 10_000)([image]))[0]


def contents(root: Path) -> dict[str, bytes]:
    """Every file below a folder by its relative name."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_float32_features_are_the_towers_in_order(tmp_path: Path) -> None:
    images = refs(tmp_path / "images", 8)
    own = disk(tmp_path / "cache")
    assert own.fill(images) == 8
    order = [5, 0, 5, 7, 2]
    batch = own([images[i] for i in order])
    assert torch.equal(batch["image_features"], torch.stack([features(images[i]) for i in order]))
    assert set(batch) == {"image_features"}
    batch["image_features"].zero_()
    assert torch.equal(own(images[:1])["image_features"][0], features(images[0]))
    assert own([]) == {}


def test_nothing_is_computed_twice_and_new_images_are_added(tmp_path: Path) -> None:
    images, calls = refs(tmp_path / "images", 7), []

    def counting(part: dict[str, torch.Tensor]) -> torch.Tensor:
        calls.append(len(part["pixel_values"]))
        return tower(part)

    assert disk(tmp_path / "cache", seen=counting).fill(images[:4]) == 4
    calls.clear()
    again = disk(tmp_path / "cache", seen=counting)
    assert again.fill(images[:4]) == 0
    assert calls == []
    assert again.fill(images) == 3
    assert torch.equal(again(images)["image_features"], torch.stack([features(i) for i in images]))


def test_features_follow_the_bytes_and_not_the_name(tmp_path: Path) -> None:
    image, other = refs(tmp_path / "images", 2)
    before = disk(tmp_path / "cache")([image])["image_features"]
    copy = tmp_path / "images" / "copy.png"
    copy.write_bytes(image.path.read_bytes())
    assert disk(tmp_path / "cache").fill([ImageRef("copy", path=copy)]) == 0
    image.path.write_bytes(other.path.read_bytes())
    after = disk(tmp_path / "cache")([image])["image_features"]
    assert torch.equal(after[0], features(other))
    assert not torch.equal(after, before)


def test_an_image_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    image, other = refs(tmp_path / "images", 2)
    own = disk(tmp_path / "cache")
    own.content([image])
    image.path.write_bytes(other.path.read_bytes())
    with pytest.raises(DataError, match="changed during the run"):
        own.fill([image])


def test_the_mean_image_is_not_mixed_up_with_real_ones(tmp_path: Path) -> None:
    images = refs(tmp_path / "images", 3)
    mean = Image.new("RGB", (8, 8), (90, 100, 110))
    seeing = disk(tmp_path / "cache")(images)["image_features"]
    blind = disk(tmp_path / "cache", replacement=mean)(images)["image_features"]
    wanted = tower(processor([mean], "pt"))[0]
    assert all(torch.equal(row, wanted) for row in blind)
    assert torch.equal(disk(tmp_path / "cache")(images)["image_features"], seeing)
    other = disk(tmp_path / "cache", replacement=Image.new("RGB", (8, 8), "red"))(images)["image_features"]
    assert not torch.equal(other, blind)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "int8"])
def test_stored_dtypes_and_their_drift(stored: str, tmp_path: Path) -> None:
    images = refs(tmp_path / "images", 5)
    own = disk(tmp_path / "cache", stored=stored, each=99)
    batch = own(images)
    truth = torch.stack([features(image) for image in images])
    assert str(batch["image_features"].dtype) == f"torch.{stored}"
    kept = batch["image_features"].float() * batch.get("image_scales", torch.ones(1))
    drift = own.folder.drift()
    assert drift is not None
    assert drift.largest == pytest.approx(float((kept - truth).abs().max()), rel=1e-5)
    assert drift.relative == pytest.approx(float((kept - truth).norm() / truth.norm()), rel=1e-4)
    assert (drift.largest == 0) == (stored == "float32")
    assert drift.relative < 0.01


def test_int8_has_a_scale_for_each_image_and_channel() -> None:
    """A channel a million times smaller than its neighbour keeps its relative precision; an empty one stays empty."""
    values = torch.randn(3, 16, 4) * torch.tensor([1e3, 1e-3, 1.0, 0.0])
    parts = packed(values, "int8")
    kept = unpacked(parts["features"], parts["scales"])
    assert parts["scales"].shape == (3, 4)
    assert ((kept - values).abs() <= values.abs().amax(1, keepdim=True) / 254 * 1.001).all()
    assert not kept[..., 3].any()
    assert drift_of(values, parts).largest > 0


def _shard(root: Path, number: int) -> Path:
    return next(root.rglob(f"shard-{number:06d}.safetensors"))


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(bytes(data))


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "cut off": lambda root: os.truncate(_shard(root, 1), _shard(root, 1).stat().st_size - 5),
    "empty": lambda root: os.truncate(_shard(root, 1), 0),
    "longer": lambda root: _shard(root, 1).write_bytes(_shard(root, 1).read_bytes() + b"x"),
    "header": lambda root: _flip(_shard(root, 1), 12),
    "header length": lambda root: _flip(_shard(root, 1), 6),
    "body": lambda root: _flip(_shard(root, 1), -3),
    "another shard": lambda root: _shard(root, 1).write_bytes(_shard(root, 0).read_bytes()),
    "index": lambda root: next(root.rglob("index.json")).write_text('{"layout": '),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told_and_mended(damage: str, tmp_path: Path) -> None:
    images, told = refs(tmp_path / "images", 8), list[str]()
    disk(tmp_path / "cache").fill(images)
    whole = contents(tmp_path / "cache")
    DAMAGE[damage](tmp_path / "cache")
    own = disk(tmp_path / "cache", note=told.append, thorough=True)
    own.fill(images)
    assert len(told) == 1
    assert "damaged" in told[0]
    assert contents(tmp_path / "cache") == whole
    assert torch.equal(own(images)["image_features"], torch.stack([features(i) for i in images]))


def test_a_shard_of_another_fingerprint_is_not_believed(tmp_path: Path) -> None:
    images = refs(tmp_path / "images", 2)
    disk(tmp_path / "a").fill(images)
    disk(tmp_path / "b", tower_name="b", seen=lambda values: tower(values) + 1).fill(images)
    target = _shard(tmp_path / "a", 0)
    target.write_bytes(_shard(tmp_path / "b", 0).read_bytes())
    told: list[str] = []
    assert disk(tmp_path / "a", note=told.append).fill(images) == 2
    assert "other features" in told[0]


def test_a_full_disk_is_a_typed_error_and_leaves_no_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = refs(tmp_path / "images", 4)
    own, calls, real = disk(tmp_path / "cache"), [], os.fsync

    def full(file: int) -> None:
        calls.append(file)
        # The third file is the second shard; every file syncs itself and its folder.
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file)

    monkeypatch.setattr("lockadapt.files.os.fsync", full)
    with pytest.raises(DiskError, match="the disk is full") as error:
        own.fill(images)
    assert error.value.exit_code == 7
    monkeypatch.undo()
    names = [Path(name).name for name in contents(tmp_path / "cache")]
    assert names == [".lock", "index.json", "shard-000000.safetensors"]
    assert disk(tmp_path / "cache").fill(images) == 1


def test_what_does_not_fit_is_refused_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, calls = refs(tmp_path / "images", 6), []

    def counting(part: dict[str, torch.Tensor]) -> torch.Tensor:
        calls.append(len(part["pixel_values"]))
        return tower(part)

    with pytest.raises(DiskError, match="6 images take .*feature_disk_gib allows 5e-07 GiB") as error:
        disk(tmp_path / "cache", limit=5e-7, seen=counting).fill(images)
    assert "data.cache" in str(error.value.fix)
    assert calls == [1]
    disk(tmp_path / "cache").fill(images)
    disk(tmp_path / "cache", limit=5e-7).fill(images)
    usage = feature_folder.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(feature_folder.shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(DiskError, match="are free"):
        disk(tmp_path / "cache").fill(refs(tmp_path / "images", 2, first=50))


def test_workers_change_nothing_and_their_errors_arrive(tmp_path: Path) -> None:
    images = refs(tmp_path / "images", 5)
    disk(tmp_path / "a").fill(images)
    disk(tmp_path / "b", workers=2).fill(images)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    bad = tmp_path / "images" / "bad.png"
    bad.write_bytes(images[0].path.read_bytes()[:60])
    with pytest.raises(DataError, match="damaged or cut off") as error:
        disk(tmp_path / "c", workers=1).fill([images[0], ImageRef(str(bad), path=bad)])
    assert error.value.where == str(bad)


def test_what_a_killed_run_planned_with_other_images_is_planned_anew(tmp_path: Path) -> None:
    images = refs(tmp_path / "images", 5)

    def dying(_: Any) -> torch.Tensor:
        raise KeyboardInterrupt

    disk(tmp_path / "cache").fill(images[:1])
    with pytest.raises(KeyboardInterrupt):
        disk(tmp_path / "cache", seen=dying).fill(images)
    some = disk(tmp_path / "cache")
    assert some.fill(images[2:4]) == 2
    assert torch.equal(some(images[2:4])["image_features"], torch.stack([features(i) for i in images[2:4]]))
    assert disk(tmp_path / "cache").fill(images) == 2


def _build(root: Path, images: list[ImageRef], pipe: Any, leave: Any) -> None:
    """Says when it begins a batch, and waits there for leave to go on."""

    def shown(part: dict[str, torch.Tensor]) -> torch.Tensor:
        pipe.send_bytes(b"x")
        leave.recv_bytes()
        return tower(part)

    built = disk(root, each=2, seen=shown).fill(images)
    pipe.send_bytes(str(built).encode())


def _start(root: Path, images: list[ImageRef], batches: int) -> tuple[Any, Any]:
    # A fork, as importing torch ten times over would take a minute; it is a process of its own all the same.
    context = multiprocessing.get_context("fork")
    mine, its = context.Pipe(duplex=False)
    leave, given = context.Pipe(duplex=False)
    for _ in range(batches):
        given.send_bytes(b"x")
    process = context.Process(target=_build, args=(root, images, its, leave), daemon=True)
    process.start()
    its.close()
    return process, mine


def _last(pipe: Any) -> int:
    received = b""
    try:
        while True:
            received = pipe.recv_bytes()
    except EOFError:
        return int(received)


def test_ten_kills_leave_the_same_bytes(tmp_path: Path) -> None:
    images = refs(tmp_path / "images", 160)
    disk(tmp_path / "whole", each=2).fill(images)
    dice, done = random.Random(0), 0
    for _ in range(10):
        # Two batches are a whole shard at least, so there is progress; the last one is killed wherever it is.
        batches = dice.randint(3, 6)
        process, pipe = _start(tmp_path / "killed", images, batches)
        for _ in range(batches):
            pipe.recv_bytes()
        pipe.poll(dice.random() * 0.004)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        shards = len(list((tmp_path / "killed").rglob("shard-*")))
        assert done < shards < 80
        done = shards
    process, pipe = _start(tmp_path / "killed", images, 160)
    assert _last(pipe) == 160 - 2 * done
    process.join()
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_builders_at_once_share_the_work(tmp_path: Path) -> None:
    images = refs(tmp_path / "images", 60)
    disk(tmp_path / "whole", each=2).fill(images)
    builders = [_start(tmp_path / "shared", images, 60) for _ in range(3)]
    counts = [_last(pipe) for _, pipe in builders]
    for process, _ in builders:
        process.join()
        assert process.exitcode == 0
    assert sum(counts) == 60
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")


def test_the_index_says_what_the_features_depend_on(tmp_path: Path) -> None:
    disk(tmp_path / "cache").fill(refs(tmp_path / "images", 2))
    index = json.loads(next(tmp_path.rglob("index.json")).read_text())
    assert index["identity"] == {"stored": "float32", "tower": "a"}
    assert index["layout"] == {"tokens": TOKENS, "channels": CHANNELS, "stored": "float32"}
