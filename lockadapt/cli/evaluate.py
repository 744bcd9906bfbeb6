"""`lockadapt eval`: evaluate a run or a merged model folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from lockadapt.console import emit


def evaluate(
    target: Path = typer.Argument(help="Run folder or merged model folder."),
    recipe: Path = typer.Option(
        None, "--recipe", help="Recipe whose test rows to use; default: the one the model was trained with."
    ),
    overrides: list[str] = typer.Option(
        [], "--set", help="Override key.path=value in the recipe, e.g. evaluation.samples=200."
    ),
    blind: bool = typer.Option(False, "--blind", help="Replace every image by the mean image."),
    predictions: Path = typer.Option(
        None, "--predictions", help="Write questions, answers and references to a JSONL file."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print errors only."),
) -> None:
    """Evaluate every objective on its test rows."""
    from lockadapt.api.steps import evaluate as score

    result = score(
        target, recipe=recipe, overrides=overrides, blind=blind, predictions=predictions, quiet=quiet
    )
    if as_json:
        emit(json.dumps(result.to_json()))
        return
    for name, values in result.scores.items():
        emit("\n".join(score_lines(name, values)))


def score_lines(name: str, values: Mapping[str, Any], indent: str = "") -> list[str]:
    """Format scores by name on one line, with groups of scores indented below."""
    plain = [f"{key} {_shown(value)}" for key, value in values.items() if not isinstance(value, dict)]
    lines = [f"{indent}{name}: {'  '.join(plain)}".rstrip()]
    for key, value in values.items():
        if isinstance(value, dict):
            lines += score_lines(key, value, indent + "  ")
    return lines


def _shown(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
