"""A run whose images are all in the feature cache needs no tower: when that is so, and what it uses."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import nn

from lockadapt.architectures import inputs_of, layout_of
from lockadapt.architectures.absent_tower import TowerRecord, absent_tower, files_digest
from lockadapt.architectures.base import unwrap_model
from lockadapt.architectures.load import load_processor
from lockadapt.data.pixels import ImageInputs, PixelInputs
from lockadapt.data.sample import ImageRef
from lockadapt.errors import VerificationError
from lockadapt.features.folder import FeatureFolder
from lockadapt.features.identity import tower_identity, with_preprocessing
from lockadapt.features.on_disk import DiskFeatures
from lockadapt.features.policy import ImagePolicy
from lockadapt.files import write_json
from lockadapt.tuning.base_identity import tower_component
from lockadapt.tuning.locks import tensor_digest

RECORDS = "towers"


@dataclass(frozen=True)
class CachedTower:
    """A tower that need not be loaded, and all that it would have computed."""

    record: TowerRecord
    images: DiskFeatures


def cached_tower(
    start: Path | None, dtype: torch.dtype, images: Mapping[str, ImageRef], policy: ImagePolicy
) -> CachedTower | None:
    """Gives what a run can start with instead of the tower; None if anything at all is missing.

    So it is where features are kept on disk, the run starts from a local stock folder whose tower filled this
    cache once, and all images are in it.

    Args:
        start: the stock folder that the run starts from; nothing is cached for one that is not local, or not
            there yet.
        dtype: that its model is loaded in.
        images: of all rows, by key.
        policy: how they become inputs.

    Returns:
        The tower's record and its features on disk, or None.
    """
    settings = policy.settings
    if not _is_folder(start) or settings.choice != "disk" or policy.blind:
        return None
    record = recall_tower(settings.cache, start, dtype)
    if record is None:
        return None
    whole = load_processor(start)
    if inputs_of(whole).stock:
        return None
    processor = whole.image_processor
    identity = with_preprocessing(record.identity, processor, settings.stored)
    folder = FeatureFolder(settings.cache, identity, settings.disk_gib, policy.note)
    disk = DiskFeatures(PixelInputs(processor, policy.max_pixels), _no_tower, folder)
    content = disk.content(images.values())
    if not content or not folder.holds(content):
        return None
    disk.fill(images.values())
    drift = folder.drift()
    assert drift is not None
    policy.note(
        f"images: all {len(content):,} tower outputs are on disk in {folder.path}; the tower is not loaded; "
        f"stored as {settings.stored}: largest difference {drift.largest:.2g}, relative {drift.relative:.2g}"
    )
    return CachedTower(record, disk)


def remember_towers(
    start: Path | None, dtype: torch.dtype, model: nn.Module, inputs: Iterable[ImageInputs]
) -> None:
    """Lets later runs from the same folder do without the tower, if this one put its outputs on disk.

    Args:
        start: what `model` was loaded from; only local stock folders are remembered.
        dtype: that it was loaded in.
        model: possibly without its tower, of which nothing new is known then.
        inputs: of the run.
    """
    if not _is_folder(start) or absent_tower(model) is not None:
        return
    for images in inputs:
        if isinstance(images, DiskFeatures) and isinstance(images.pixels, PixelInputs):
            remember_tower(images.folder.path.parent, model, start, dtype)


def remember_tower(cache: Path, model: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """Writes a record into the cache, under the digest of the files that the tower was loaded from.

    Args:
        cache: the feature cache's folder.
        model: loaded from `folder`, its tower in place.
        folder: a local stock folder.
        dtype: that it was loaded in.
    """
    name = str(dtype).removeprefix("torch.")
    files = files_digest(folder, name)
    target = _file(cache, files)
    if target.is_file():
        return
    path = layout_of(model).tower
    tower: nn.Module = unwrap_model(model).get_submodule(path)
    tensors = {**dict(tower.named_parameters()), **dict(tower.named_buffers())}
    digests = {f"{path}.{name}": tensor_digest(tensor) for name, tensor in tensors.items()}
    count = sum(parameter.numel() for parameter in tower.parameters())
    base = asdict(tower_component(model))
    record = TowerRecord(str(folder), files, name, count, digests, tower_identity(model), base)
    write_json(target, asdict(record))


def recall_tower(cache: Path, folder: Path, dtype: torch.dtype) -> TowerRecord | None:
    """The record for the files in `folder`, wherever they lay when it was written; None if there is none."""
    name = str(dtype).removeprefix("torch.")
    files = files_digest(folder, name)
    try:
        values: dict[str, Any] = json.loads(_file(cache, files).read_text(encoding="utf-8"))
        record = TowerRecord(**values)
    except (OSError, ValueError, TypeError):
        return None
    return replace(record, folder=str(folder)) if record.files == files else None


def _file(cache: Path, files: str) -> Path:
    return cache.expanduser() / RECORDS / f"{files}.json"


def _is_folder(start: Path | None) -> TypeGuard[Path]:
    return start is not None and (start / "config.json").is_file()


def _no_tower(_: Mapping[str, Any]) -> torch.Tensor:
    raise VerificationError(
        "an image is not in the feature cache, and the tower was not loaded",
        where="data.cache",
        fix="start again: the tower is loaded where images are missing",
    )
