"""The rows that a recipe names, as samples by objective."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from lockadapt.building.streams import is_streamed, open_stream
from lockadapt.console import emit
from lockadapt.data.boxes import BoxRules
from lockadapt.data.problems import BadRows
from lockadapt.data.readers import read_samples
from lockadapt.data.readers.source import Source
from lockadapt.data.sample import Sample
from lockadapt.data.sources import SourceDraw, shares
from lockadapt.data.video import VideoRules
from lockadapt.errors import DataError
from lockadapt.recipe.objectives import GroundingSection
from lockadapt.recipe.schema import Recipe, SourceSection


def build_samples(
    recipe: Recipe,
    part: str,
    only: Collection[str] | None = None,
    note: Callable[[str], None] | None = None,
    most: int | None = None,
    streamed: bool = True,
) -> dict[str, list[Sample]]:
    """Reads the rows of one part of the data.

    Of rows that are streamed images are read again when they are opened, but for all training rows, which are
    asked for to be in memory.

    Args:
        recipe: checked already.
        part: `train`, `validation` or `test`.
        only: names of objectives; default: all.
        note: is told which rows were left out; default: stderr.
        most: of a source that is streamed so many samples are read; None: all, for validation as many as are
            used.
        streamed: whether sources that are streamed are read.

    Returns:
        Samples by objective; objectives without such rows are left out.

    Raises:
        DataError: a file holds no rows, or wrong ones.
    """
    samples: dict[str, list[Sample]] = {}
    if part == "validation":
        most = recipe.training.validation_samples
    for name, section in recipe.objectives.items():
        sources = section.sources(part)
        if not sources or (only is not None and name not in only):
            continue
        if not streamed and all(map(is_streamed, sources)):
            continue
        samples[name] = []
        for number, source in enumerate(sources):
            if is_streamed(source) and not streamed:
                continue
            told = told_source(recipe, name, part, note, number)
            if is_streamed(source) and (part != "train" or most is not None):
                own = open_stream(recipe, source, told).listed(most)
            else:
                own = read_samples(source.format, told)
            samples[name] += [replace(sample, source=number) for sample in own] if number else own
        if part == "validation":
            samples[name] = samples[name][: recipe.training.validation_samples]
        if not samples[name]:
            raise DataError("holds no rows", where=f"objectives.{name}.{part}", fix="name a file with rows")
    return samples


def told_source(
    recipe: Recipe, name: str, part: str, note: Callable[[str], None] | None = None, number: int = 0
) -> Source:
    """What the reader of an objective's rows is told.

    Args:
        recipe: checked already.
        name: of the objective.
        part: `train`, `validation` or `test`, which it has.
        note: is told which rows were left out; default: stderr.
        number: of the source among those of the part.

    Returns:
        The source.
    """
    section = recipe.objectives[name]
    bad_rows = (
        BadRows(recipe.data.max_bad_row_fraction, note or partial(emit, error=True))
        if recipe.data.on_bad_row == "skip"
        else None
    )
    prompt = getattr(section, "prompt", None)  # not every kind has one
    rows = section.rows or section.kind
    told = row_source(section.sources(part)[number], rows, prompt, part, bad_rows)
    told = replace(told, video=video_rules(recipe))
    return replace(told, boxes=box_rules(section, part)) if isinstance(section, GroundingSection) else told


def row_source(
    section: SourceSection, kind: str, prompt: str | None, part: str, bad_rows: BadRows | None = None
) -> Source:
    """What a reader is told: the keys of a source, the kind of rows wanted, and the prompt around them."""
    return Source(
        path=section.path,
        images=section.images,
        annotations=section.annotations,
        split=section.split,
        columns=dict(section.columns),
        image_name=section.image_name,
        limit=section.limit,
        kind=kind,
        prompt=prompt,
        # An image with five captions is five lessons, but one question.
        expand=part == "train",
        bad_rows=bad_rows,
    )


def video_rules(recipe: Recipe) -> VideoRules:
    """Which frames of videos a recipe's rows show."""
    data = recipe.data
    return VideoRules(
        data.video_frames, data.video_rate, data.video_times, data.max_video_seconds, data.max_pixels
    )


def box_rules(section: GroundingSection, part: str) -> BoxRules:
    """How the boxes of one part of the data are given and written; only training rows are changed."""
    train = part == "train"
    return BoxRules(
        section.box_format or "qwen",
        section.coordinates or "xyxy",
        (section.jitter or 0.0) if train else 0.0,
        bool(section.flip) and train,
    )


def source_rows(recipe: Recipe, name: str, counts: Sequence[int]) -> list[dict[str, Any]]:
    """Says what each source of an objective's training rows gives.

    Args:
        recipe: checked already.
        name: of the objective.
        counts: rows that can be used, by source.

    Returns:
        `{"path", "rows", "share"}` of each, and the `revision` of what is streamed from the Hub; the share is
        a fraction of the objective's samples.
    """
    sections = recipe.objectives[name].sources("train")
    parts = shares(
        [(SourceDraw(section.weight), count) for section, count in zip(sections, counts, strict=True)]
    )
    return [
        {"path": section.path, "rows": count, "share": round(part, 6)}
        | ({"revision": section.revision} if section.revision is not None else {})
        for section, count, part in zip(sections, counts, parts, strict=True)
    ]
