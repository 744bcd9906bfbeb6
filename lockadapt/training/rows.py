"""The rows of a run: read, images opened once, encoded, and where images come from while it trains."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lockadapt.building.experiment import Experiment
from lockadapt.console import Reporter
from lockadapt.data.encode import Encoded
from lockadapt.data.ledger import ImageLedger
from lockadapt.data.model_encoder import model_encoder
from lockadapt.data.pixels import ImageInputs
from lockadapt.data.sample import ImageRef, Sample
from lockadapt.data.scan import few_samples, scan_images
from lockadapt.errors import DataError
from lockadapt.features.inputs import inputs_by_objective
from lockadapt.features.policy import ImagePolicy
from lockadapt.features.towerless import CachedTower
from lockadapt.objectives import Objective
from lockadapt.training.datasets import encoded_rows

IMAGES_FIRST = 256
"""Images that are opened before step 1 where a bad one is an error."""

Samples = Mapping[str, Mapping[str, Sequence[Sample]]]
"""By part of the data (`train`, `validation`) and objective."""


@dataclass(frozen=True)
class Rows:
    """Training and validation rows of all objectives, encoded, and where their images come from."""

    train: dict[str, list[Encoded]]
    validation: dict[str, list[Encoded]]
    images: dict[str, ImageInputs]

    @property
    def counts(self) -> dict[str, int]:
        """Training rows by objective."""
        return {name: len(items) for name, items in self.train.items()}


def load_samples(experiment: Experiment, reporter: Reporter) -> Samples:
    """Reads the rows of training and validation; leaves samples of bad images out, if the recipe says so.

    Only then are all images opened first, but for those that an earlier run or `check` opened. Else
    `IMAGES_FIRST` of them are, drawn at random, and the others when they are used.

    Args:
        experiment: of the recipe.
        reporter: told what is left out.

    Returns:
        The samples by objective.

    Raises:
        DataError: rows are wrong, or too many images are bad.
    """
    samples = {part: experiment.samples(part, note=reporter.note) for part in ("train", "validation")}
    flat = [sample for rows in samples.values() for items in rows.values() for sample in items]
    data = experiment.data
    skips = data.on_bad_image == "skip"
    report = scan_images(
        flat if skips else few_samples(flat, IMAGES_FIRST, experiment.training.seed),
        data.max_pixels,
        data.on_bad_image,
        data.max_bad_fraction,
        progress=reporter.counted("opening images"),
        ledger=ImageLedger(experiment.features.cache) if skips else None,
    )
    if report.bad:
        reporter.note(
            f"left out {len(report.bad)} bad images: "
            + "; ".join(f"{b.where}: {b.reason}" for b in report.bad[:5])
        )
        kept = {id(sample) for sample in report.good}
        samples = {
            part: {name: [s for s in items if id(s) in kept] for name, items in rows.items()}
            for part, rows in samples.items()
        }
    return samples


def images_of(samples: Samples) -> dict[str, ImageRef]:
    """The distinct images of all parts and objectives, by key."""
    return {
        image.key: image
        for part in samples.values()
        for rows in part.values()
        for sample in rows
        for image in sample.images
    }


def images_first(samples: Samples, count: int = 2) -> list[Sample]:
    """A few training samples that show images: the first ones, and the first that shows several."""
    shown = [sample for rows in samples["train"].values() for sample in rows if sample.images]
    several = (sample for sample in shown[count:] if len(sample.images) > 1)
    return [*shown[:count], *itertools.islice(several, 1)]


def encode_rows(
    experiment: Experiment,
    model: Any,
    processor: Any,
    samples: Samples,
    policy: ImagePolicy,
    cached: CachedTower | None = None,
) -> Rows:
    """Encodes all rows, and computes what is kept of their images.

    Args:
        experiment: made from the recipe.
        model: as it trains.
        processor: the model's.
        samples: from `load_samples`.
        policy: how images become inputs; its `note` is told what is left out.
        cached: what the run has instead of its tower, if all of that is kept.

    Returns:
        Encoded rows and image inputs by objective.

    Raises:
        DataError: an objective is left without rows.
        DiskError: features shall be kept on disk and do not fit.
    """
    encoder = model_encoder(
        model, processor, experiment.data.max_length, experiment.data.allow_special_tokens
    )
    objectives = experiment.objectives
    kept = partial(_kept, model, objectives, policy)
    train, reports = encoded_rows(samples["train"], objectives, encoder)
    validation, _ = encoded_rows(samples["validation"], objectives, encoder)
    for name, report in reports.items():
        if report.cut or report.dropped:
            policy.note(
                f"{name}: {len(report.cut)} samples cut, {len(report.dropped)} dropped (longer than "
                "the limit)"
            )
        if not report.encoded:
            raise DataError(
                "no sample is left", where=f"objectives.{name}.train", fix="raise data.max_length"
            )
    train, validation = kept(train), kept(validation)
    rows = {name: [*train[name], *validation.get(name, ())] for name in train}
    uses = sum(stage.samples for stage in experiment.stages({n: len(r) for n, r in train.items()}))
    distinct = len({image.key for items in rows.values() for row in items for image in row.images})
    count = sum(map(len, rows.values()))
    policy.note(f"{count:,} rows, {distinct:,} images, {encoder.image_tokens} tokens an image")
    if cached is not None:
        return Rows(train, validation, dict.fromkeys(objectives, cached.images))
    frozen = {name: objective.frozen for name, objective in objectives.items()}
    images = inputs_by_objective(model, processor, frozen, rows, policy, reused=uses > distinct)
    return Rows(train, validation, images)


def _kept(
    model: Any,
    objectives: Mapping[str, Objective],
    policy: ImagePolicy,
    rows: Mapping[str, list[Encoded]],
) -> dict[str, list[Encoded]]:
    return {name: objectives[name].keep(model, items, policy) for name, items in rows.items()}


def image_policy(experiment: Experiment, reporter: Reporter) -> ImagePolicy:
    """How the images of an experiment become inputs of batches."""
    return ImagePolicy(
        experiment.features,
        experiment.data.max_pixels,
        experiment.blind,
        projector_trains=experiment.projector_trains,
        note=reporter.note,
        progress=reporter.counted("running what is frozen on images"),
    )
