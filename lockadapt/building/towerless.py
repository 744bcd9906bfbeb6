"""A run whose images are all in the feature cache does without its tower: when that is so, and what it works with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lockadapt.architectures.absent_tower import TowerRecord, absent_tower
from lockadapt.architectures.load import load_processor
from lockadapt.building.experiment import Experiment
from lockadapt.console import Reporter
from lockadapt.data.pixels import ImageInputs, PixelInputs
from lockadapt.data.sample import Sample
from lockadapt.errors import VerificationError
from lockadapt.features.folder import FeatureFolder
from lockadapt.features.identity import with_preprocessing
from lockadapt.features.on_disk import DiskFeatures
from lockadapt.features.tower_records import recall_tower, remember_tower
from lockadapt.models.sources import resolve_dtype


@dataclass(frozen=True)
class Cached:
    """A tower that need not be loaded, and all that it would have computed."""

    tower: TowerRecord
    images: DiskFeatures


def cached_features(
    experiment: Experiment,
    base: Path,
    samples: Mapping[str, Mapping[str, list[Sample]]],
    reporter: Reporter,
) -> Cached | None:
    """What a run can start with instead of the tower; None if anything at all is missing.

    Args:
        experiment: says where features are kept.
        base: folder of the base that the run makes for itself.
        samples: rows by part and objective.
        reporter: is told what is done without.

    So it is where `data.features` is `disk`, the run starts from a local stock folder (`model.vlm`, or a base that was
    assembled before an interruption) whose tower filled this cache once, and all images are in it.
    """
    start, settings = _start(experiment, base), experiment.features
    if start is None or settings.choice != "disk" or experiment.blind:
        return None
    record = recall_tower(settings.cache, start, resolve_dtype(experiment.model.dtype))
    if record is None:
        return None
    processor = load_processor(start).image_processor
    identity = with_preprocessing(record.identity, processor, settings.stored)
    place = FeatureFolder(settings.cache, identity, settings.disk_gib, reporter.note)
    disk = DiskFeatures(PixelInputs(processor, experiment.data.max_pixels), _no_tower, place)
    images = {
        image.key: image
        for part in samples.values()
        for rows in part.values()
        for sample in rows
        for image in sample.images
    }
    content = disk.content(images.values())
    if not content or not place.holds(content):
        return None
    disk.fill(images.values())
    drift = place.drift()
    assert drift is not None
    reporter.note(
        f"images: all {len(content):,} tower outputs are on disk in {place.path}; the tower is not loaded; "
        f"stored as {settings.stored}: largest difference {drift.largest:.2g}, relative {drift.relative:.2g}"
    )
    return Cached(record, disk)


def remember(
    experiment: Experiment, base: Path | None, model: Any, images: ImageInputs, dtype: torch.dtype
) -> None:
    """Lets later runs from the same files do without the tower, if this one put its outputs on disk.

    Args:
        experiment: says where features are kept.
        base: folder of the base that the run made for itself, which may be the start; None outside a run.
        model: whose tower computed them.
        images: where they are.
        dtype: that the tower ran in.
    """
    start = _start(experiment, base)
    if start is not None and isinstance(images, DiskFeatures) and absent_tower(model) is None:
        remember_tower(experiment.features.cache, model, start, dtype)


def _start(experiment: Experiment, base: Path | None) -> Path | None:
    """The local stock folder that the run starts from, if it is there already."""
    named = experiment.model.vlm
    start = Path(named).expanduser() if named is not None else base
    return start if start is not None and (start / "config.json").is_file() else None


def _no_tower(_: torch.Tensor) -> torch.Tensor:
    raise VerificationError(
        "an image is not in the feature cache, and the tower was not loaded",
        where="data.cache",
        fix="start again: the tower is loaded where images are missing",
    )
