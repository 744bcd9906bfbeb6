"""The training rows of a recipe that stay on disk: which do, and their tables."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from lockadapt.building.experiment import Experiment
from lockadapt.building.samples import told_source
from lockadapt.building.streams import is_streamed, open_stream, row_cache
from lockadapt.data.bad_rows import Allowed
from lockadapt.data.readers import LINE_RULES, Source, iterate_samples
from lockadapt.data.spool import NoWholeFiles, open_spool
from lockadapt.data.stored import JoinedRows, StoredRows
from lockadapt.data.table import (
    RowFile,
    Table,
    TableFile,
    has_more_lines,
    may_have_more_rows,
    may_stay_on_disk,
)
from lockadapt.errors import DiskError, RecipeError

IN_MEMORY = 50_000
"""Rows of a file that `auto` keeps in memory."""

SHORTEST_ROW = 20
"""Bytes; a file that is too small for so many rows needs no look."""

FOLDERS = ("datasets", "imagefolder")
"""Formats whose rows are not all in files that a recipe names."""


def build_tables(experiment: Experiment, note: Callable[[str], None] | None = None) -> dict[str, StoredRows]:
    """Opens the training rows that stay on disk, after indexing them where that was not done before.

    Args:
        experiment: of the recipe.
        note: is told which rows were left out of those that were looked at.

    Returns:
        Rows by objective; those of objectives whose rows are kept in memory are left out.

    Raises:
        RecipeError: `data.rows: disk` is asked for rows that cannot be read one by one.
        DataError: a file of rows cannot be read, or has none.
        DiskError: `disk` is asked for, and no index can be written.
    """
    tables: dict[str, StoredRows] = {}
    if experiment.data.rows == "memory":
        sections = experiment.recipe.objectives.items()
        if named := [n for n, s in sections if any(source.streaming for source in s.sources("train"))]:
            raise RecipeError(
                f"{named[0]} streams its rows", where="data.rows: memory", fix="use auto, or no `streaming`"
            )
        return tables
    streamed = [name for name in experiment.objectives if _is_streamed(experiment, name)]
    if streamed and experiment.data.features in ("memory", "disk"):
        raise RecipeError(
            f"{streamed[0]} streams its images, of which nothing is kept",
            where=f"data.features: {experiment.data.features}",
            fix="use none or auto, or data.rows: memory",
        )
    cache = row_cache(experiment.recipe)
    for name in experiment.objectives:
        try:
            parts = _parts(experiment, name, cache, note)
        except _InMemoryError as reason:
            if experiment.data.rows == "disk" or name in streamed:
                raise RecipeError(
                    f"the rows of {name} cannot stay on disk: {reason}",
                    where="data.rows",
                    fix="use memory" if name in streamed else "use memory or auto",
                ) from reason
            continue
        except DiskError as error:
            if experiment.data.rows == "disk" or name in streamed:
                raise
            if note is not None:
                why = f"{error.message} ({error.where})"
                note(f"{name}: rows stay in memory, as no index can be written: {why}")
            continue
        if parts:
            tables[name] = JoinedRows(parts) if len(parts) > 1 else parts[0]
    return tables


def _parts(
    experiment: Experiment, name: str, cache: Path, note: Callable[[str], None] | None
) -> list[StoredRows]:
    """The sources of an objective, all on disk; none: together they are few."""
    if not experiment.objectives[name].drawable:
        raise _InMemoryError("something is computed of all of them before step 1")
    sections = experiment.recipe.objectives[name].sources("train")
    told = [told_source(experiment.recipe, name, "train", note, n) for n in range(len(sections))]
    seed = experiment.training.seed
    disk = experiment.data.rows == "disk" or _is_streamed(experiment, name)
    few = 0 if disk else IN_MEMORY // len(sections)
    if any(map(is_streamed, sections)):
        return [
            open_stream(experiment.recipe, s, source)
            if is_streamed(s)
            else Table(_surely(s.format, source, cache), cache, seed)
            for s, source in zip(sections, told, strict=True)
        ]
    files = [_file(s.format, source, few, cache) for s, source in zip(sections, told, strict=True)]
    if not any(files):
        return []
    return [
        Table(file or _surely(section.format, source, cache), cache, seed)
        for section, source, file in zip(sections, told, files, strict=True)
    ]


def _is_streamed(experiment: Experiment, name: str) -> bool:
    """Whether a source of an objective is shards with images."""
    return any(map(is_streamed, experiment.recipe.objectives[name].sources("train")))


def _surely(format: str, source: Source, cache: Path) -> TableFile:
    """The file of a source, however few rows it has."""
    file = _file(format, source, 0, cache)
    assert file is not None
    return file


def allowed_bad(experiment: Experiment) -> Allowed:
    """What a recipe says of rows that cannot be used."""
    data = experiment.data
    return Allowed(
        data.on_bad_row == "skip",
        data.on_bad_image == "skip",
        data.max_bad_row_fraction,
        data.max_bad_fraction,
    )


class _InMemoryError(Exception):
    """Why rows cannot stay on disk."""


def _file(format: str, source: Source, few: int, cache: Path) -> TableFile | None:
    """The file of a source's rows: the user's own, or one of their samples; None: they are not more than few.

    With 0, there is one for any number of rows.
    """
    if format in FOLDERS or not os.path.isfile(source.path):  # False of impossible names, too
        raise _InMemoryError(f"with the format {format} they are in no file of their own")
    if few and (Path(source.path).stat().st_size < SHORTEST_ROW * few or (source.limit or few + 1) <= few):
        return None
    if format in LINE_RULES and may_stay_on_disk(source):
        if not has_more_lines(Path(source.path), few):
            return None
        file = RowFile(source, LINE_RULES[format](source))
        table = Table(file, cache)
        if len(table) <= few:
            return None
        if table.is_single:
            return file
    if few and Path(source.path).suffix.lower() == ".json" and not may_have_more_rows(Path(source.path), few):
        return None
    try:
        spool = open_spool(source, lambda: iterate_samples(format, source), few, cache)
    except NoWholeFiles:
        raise _InMemoryError("their images are no whole files") from None
    return spool if spool.rows > few else None
