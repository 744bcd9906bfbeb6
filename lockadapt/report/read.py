"""Reads what a report shows of a run, finished or still training; nothing of its model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockadapt.errors import RecipeError
from lockadapt.recipe.schema import Recipe
from lockadapt.report.tokens import read_tokens
from lockadapt.runs import run_folder
from lockadapt.runs.curves import MetricLines, read_curves
from lockadapt.runs.kept_json import FOLLOWED, PREDICTIONS, SCORES
from lockadapt.runs.record import RUN, RunRecord, read_record

Row = dict[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """What the folder of a run holds for a report.

    Attributes:
        name: of the run in the report.
        folder: of the run.
        recipe: resolved.
        record: `run.json`; None while the run trains.
        logged: `metrics.jsonl`.
        scores: of `lockadapt eval`, by `seeing` and `blind`, then by objective.
        followed: predictions of the same samples at every validation, in the order that they were made.
        predictions: of the test rows, as `lockadapt eval` left them.
        tokens: of the first training rows by objective, each with how it is used.
    """

    name: str
    folder: Path
    recipe: Recipe
    record: RunRecord | None
    logged: MetricLines
    scores: Mapping[str, Any]
    followed: Sequence[Row]
    predictions: Sequence[Row]
    tokens: Mapping[str, Sequence[Any]]


def read_runs(folders: Sequence[Path]) -> list[RunFiles]:
    """Reads runs under names that tell them apart.

    Args:
        folders: of runs.

    Returns:
        A run a folder, in order.

    Raises:
        RecipeError: a folder is no run.
        VerificationError: a file in it is damaged, and which value.
    """
    short = [folder.resolve().name for folder in folders]
    names = short if len(set(short)) == len(short) else [str(folder) for folder in folders]
    return [_read(folder, name) for folder, name in zip(folders, names, strict=True)]


def _read(folder: Path, name: str) -> RunFiles:
    if not run_folder.is_run(folder):
        raise RecipeError("is no run folder: recipe.yaml is missing", where=str(folder), fix="name a run")
    return RunFiles(
        name,
        folder,
        run_folder.read_recipe(folder),
        read_record(folder) if (folder / RUN).is_file() else None,
        read_curves(folder / run_folder.METRICS),
        SCORES.read(folder / run_folder.SCORES, {}),
        FOLLOWED.read_lines(folder / run_folder.FOLLOWED),
        PREDICTIONS.read_lines(folder / run_folder.PREDICTIONS),
        read_tokens(folder),
    )
