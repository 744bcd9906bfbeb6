"""The rows of a run: read, images opened once, encoded, and where images come from while it trains."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lockadapt.building.experiment import Experiment
from lockadapt.building.tables import build_tables
from lockadapt.console import Reporter
from lockadapt.data.drawn import DrawnRows
from lockadapt.data.encode import Encoded
from lockadapt.data.ledger import ImageLedger
from lockadapt.data.model_encoder import model_encoder
from lockadapt.data.pixels import ImageInputs
from lockadapt.data.sample import ImageRef, Sample
from lockadapt.data.scan import few_samples, scan_images
from lockadapt.data.stored import StoredRows, few_of
from lockadapt.errors import DataError
from lockadapt.features.inputs import inputs_by_objective
from lockadapt.features.policy import ImagePolicy
from lockadapt.features.towerless import CachedTower
from lockadapt.models.freed_memory import keeping_freed_memory
from lockadapt.objectives import Objective
from lockadapt.training.datasets import encoded_rows
from lockadapt.training.drawing import IMAGES_FIRST, drawn_rows, lists_images, look_at

Samples = Mapping[str, Mapping[str, Sequence[Sample]]]
"""By part of the data (`train`, `validation`) and objective."""


@dataclass(frozen=True)
class Rows:
    """Training and validation rows of all objectives, encoded, and where their images come from.

    Training rows that stay on disk are `DrawnRows`: encoded when they are drawn.
    """

    train: dict[str, Sequence[Encoded]]
    validation: dict[str, list[Encoded]]
    images: dict[str, ImageInputs]

    @property
    def counts(self) -> dict[str, int]:
        """Training rows by objective."""
        return {name: len(items) for name, items in self.train.items()}

    def write_bad_rows(self, folder: Path) -> None:
        """Lets rows that are left out when they are drawn be listed in a run folder."""
        for rows in self.train.values():
            if isinstance(rows, DrawnRows):
                rows.log.write_into(folder)
                for shard in rows.table.unreadable:
                    rows.log.add(shard.where or "", shard.message, "shard")


def load_samples(experiment: Experiment, reporter: Reporter) -> Samples:
    """Reads the rows of training and validation; leaves samples of bad images out, if the recipe says so.

    Only then are all images opened first, but for those that an earlier run or `check` opened. Else
    `IMAGES_FIRST` of them are, drawn at random, and the others when they are used. Training rows that stay on
    disk are looked at, some of them, and so are their images; see `StoredRows`.

    Args:
        experiment: of the recipe.
        reporter: told what is left out.

    Returns:
        The samples by objective.

    Raises:
        DataError: rows are wrong, or too many images are bad.
    """
    tables = build_tables(experiment, reporter.note)
    read = [name for name in experiment.objectives if name not in tables]
    parts = {
        "train": experiment.samples("train", read, note=reporter.note),
        "validation": experiment.samples("validation", note=reporter.note),
    }
    flat = [sample for rows in parts.values() for items in rows.values() for sample in items]
    data, skips = experiment.data, experiment.data.on_bad_image == "skip"
    seed = experiment.training.seed
    report = scan_images(
        flat if skips else few_samples(flat, IMAGES_FIRST, seed),
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
        parts = {
            part: {name: [s for s in items if id(s) in kept] for name, items in rows.items()}
            for part, rows in parts.items()
        }
    look_at(experiment, tables, reporter)
    order = [name for name in experiment.objectives if name in tables or name in parts["train"]]
    train = {name: tables[name] if name in tables else parts["train"][name] for name in order}
    return {"train": train, "validation": parts["validation"]}


def images_of(samples: Samples) -> dict[str, ImageRef]:
    """The distinct images of all parts and objectives, by key."""
    images: dict[str, ImageRef] = {}
    for rows in (items for part in samples.values() for items in part.values()):
        if isinstance(rows, StoredRows):
            images |= rows.images_by_key()
        else:
            images |= {image.key: image for sample in rows for image in sample.images}
    return images


def few_training_samples(samples: Samples) -> list[Sample]:
    """The training samples of all objectives; of rows on disk those that are looked at."""
    return [sample for items in samples["train"].values() for sample in few_of(items)]


def images_first(samples: Samples, count: int = 2) -> list[Sample]:
    """A few training samples that show images: the first ones, and the first that shows several."""
    shown = [sample for sample in few_training_samples(samples) if sample.images]
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
    """Encodes all rows that are kept in memory, and computes what is kept of their images.

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
    data = experiment.data
    encoder = model_encoder(model, processor, data.max_length, data.allow_special_tokens)
    objectives = experiment.objectives
    tables = {name: items for name, items in samples["train"].items() if isinstance(items, StoredRows)}
    in_memory = {name: items for name, items in samples["train"].items() if name not in tables}
    kept = partial(_kept, model, objectives, policy)
    encoded, reports = encoded_rows(in_memory, objectives, encoder)
    validation, _ = encoded_rows(samples["validation"], objectives, encoder)
    drawn = drawn_rows(experiment, encoder, tables)
    reports |= {name: rows.report for name, rows in drawn.items()}
    for name, report in reports.items():
        if report.cut or report.dropped:
            which = f" of the {len(tables[name].few):,} that were read" if name in tables else ""
            policy.note(
                f"{name}: {len(report.cut)} samples cut, {len(report.dropped)} dropped (longer than "
                f"the limit){which}"
            )
        if not report.encoded:
            raise DataError(
                "no sample is left", where=f"objectives.{name}.train", fix="raise data.max_length"
            )
    encoded, validation = kept(encoded), kept(validation)
    train: dict[str, Sequence[Encoded]] = {n: drawn.get(n) or encoded[n] for n in samples["train"]}
    rows: dict[str, Sequence[Encoded | Sample]] = {
        name: [*encoded.get(name, ()), *validation.get(name, ())] for name in train
    }
    distinct = len({image.key for items in rows.values() for row in items for image in row.images})
    distinct += sum(table.images for table in tables.values())
    count = sum(len(items) for items in (*train.values(), *validation.values()))
    policy.note(f"{count:,} rows, {distinct:,} images, {encoder.image_tokens} tokens an image")
    if cached is not None:
        return Rows(train, validation, dict.fromkeys(objectives, cached.images))
    listed = lists_images(experiment, tables)
    if not listed:
        policy = replace(policy, settings=replace(policy.settings, choice="none"))
        policy.note(
            "images: pixels at every step, as rows on disk name many; `data.features: disk` keeps them"
        )
    for name, table in tables.items():
        rows[name] = [*rows[name], *(table.one_of_each() if listed else table.few)]
    uses = sum(stage.samples for stage in experiment.stages({n: len(r) for n, r in train.items()}))
    frozen = {name: objective.frozen for name, objective in objectives.items()}
    # Where outputs of the tower may be kept, it runs over all images now.
    runs_tower = policy.settings.choice != "none"
    with keeping_freed_memory() if runs_tower else nullcontext():
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
