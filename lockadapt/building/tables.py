"""The training rows of a recipe that stay on disk: which do, and their tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lockadapt.building.experiment import Experiment
from lockadapt.building.samples import told_source
from lockadapt.data.bad_rows import Allowed
from lockadapt.data.readers import LINE_RULES, Source
from lockadapt.data.table import Table, TableFile, may_stay_on_disk
from lockadapt.errors import RecipeError

IN_MEMORY = 50_000
"""Rows of a file that `auto` keeps in memory."""

SHORTEST_ROW = 20
"""Bytes; a file that is too small for so many rows needs no look."""

INDEXES = "rows"
"""The folder of indexes, in that of the feature cache."""


def build_tables(experiment: Experiment, note: Callable[[str], None] | None = None) -> dict[str, Table]:
    """Opens the training rows that stay on disk, after indexing them where that was not done before.

    Args:
        experiment: of the recipe.
        note: is told which rows were left out of those that were looked at.

    Returns:
        Tables by objective; those whose rows are kept in memory are left out.

    Raises:
        RecipeError: `data.rows: disk` is asked for rows that cannot be read one by one.
        DataError: a file of rows cannot be read, has none, or has bad ones among those that are looked at.
    """
    choice, tables = experiment.data.rows, dict[str, Table]()
    for name, section in experiment.recipe.objectives.items():
        if choice == "memory":
            continue
        source = told_source(experiment.recipe, name, "train", note)
        reason = _why_in_memory(experiment, name, section.train.format, source)
        if reason is not None and choice == "disk":
            raise RecipeError(reason, where="data.rows", fix="use memory or auto")
        if reason is not None or (choice == "auto" and _is_small(source)):
            continue
        file = TableFile(source, LINE_RULES[section.train.format](source))
        table = Table(file, experiment.features.cache.expanduser() / INDEXES, experiment.training.seed)
        if choice == "disk" or (len(table) > IN_MEMORY and table.is_single):
            tables[name] = table
    return tables


def allowed_bad(experiment: Experiment) -> Allowed:
    """What a recipe says of rows that cannot be used."""
    data = experiment.data
    return Allowed(
        data.on_bad_row == "skip",
        data.on_bad_image == "skip",
        data.max_bad_row_fraction,
        data.max_bad_fraction,
    )


def _why_in_memory(experiment: Experiment, name: str, format: str, source: Source) -> str | None:
    """Why an objective's rows cannot stay on disk; None: they can."""
    if format not in LINE_RULES or not may_stay_on_disk(source):
        return f"the rows of {name} are no JSON lines (a .jsonl or .ndjson file), so they stay in memory"
    if experiment.objectives[name].frozen not in ("tower", "nothing"):
        return f"{name} computes something of every image before step 1, so its rows stay in memory"
    return None


def _is_small(source: Source) -> bool:
    few = source.limit is not None and source.limit <= IN_MEMORY
    return few or Path(source.path).stat().st_size < SHORTEST_ROW * IN_MEMORY
