"""`lockadapt eval`: evaluate a run or a merged model folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from lockadapt.console import emit
from lockadapt.errors import RecipeError
from lockadapt.processes import is_first


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
    benchmark: str = typer.Option(
        None,
        "--benchmark",
        help="Score a benchmark instead: vqa-v2, gqa, textvqa, pope, mmstar, mme and others.",
    ),
    data: str = typer.Option(None, "--data", help="Folder of the benchmark's official files, or a Hub id."),
    split: str = typer.Option(None, "--split", help="Split of the benchmark."),
    prompt: str = typer.Option(None, "--prompt", help="Ask this instead of the benchmark's own prompt."),
    count: int = typer.Option(
        None, "--processes", min=1, max=1024, help="Answer in several processes on this machine, one a GPU."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print errors only."),
) -> int:
    """Evaluate every objective on its test rows, or the model on a benchmark."""
    if count is not None and count > 1:
        from lockadapt.cli.launching import launch

        if benchmark is not None:
            raise RecipeError("--processes is not for --benchmark", where="--processes", fix="leave it out")
        return launch(sys.argv[1:], count)
    if benchmark is not None:
        scores = _benchmark(
            target, (benchmark, data, split, prompt, recipe, overrides, blind, predictions), quiet
        )
    else:
        from lockadapt.api.steps import evaluate as score

        _refuse({"--data": data, "--split": split, "--prompt": prompt})
        scores = score(
            target, recipe=recipe, overrides=overrides, blind=blind, predictions=predictions, quiet=quiet
        ).to_json()
    if not is_first():
        return 0
    if as_json:
        emit(json.dumps(scores))
        return 0
    for name, values in scores.items():
        emit("\n".join(score_lines(name, values)))
    return 0


def _benchmark(target: Path, request: tuple[Any, ...], quiet: bool) -> dict[str, Any]:
    from lockadapt.console import Reporter
    from lockadapt.evaluation.benchmarks.run import BenchmarkRequest, run_benchmark

    if request[1] is None:
        raise RecipeError(
            "--benchmark needs its files", where="--data", fix="add --data FOLDER (docs/eval-benchmarks.md)"
        )
    return run_benchmark(target, BenchmarkRequest(*request), Reporter(quiet))


def _refuse(options: Mapping[str, str | None]) -> None:
    for name, value in options.items():
        if value is not None:
            raise RecipeError(f"{name} belongs to --benchmark", where=name, fix="add --benchmark NAME")


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
