"""`lockadapt quickstart`: run the whole pipeline on built-in models and images, offline, in minutes."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from lockadapt.console import emit


def quickstart(
    output: Path = typer.Option(
        Path("quickstart"),
        "--output",
        "-o",
        help="Output folder for data, run, merged model and overview image.",
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the result as one JSON object on stdout."),
) -> None:
    """Create a dataset, join tiny models, train, evaluate, merge, verify and show the result."""
    from lockadapt.console import Reporter
    from lockadapt.quickstart.tour import tour

    result = tour(output, Reporter())
    if as_json:
        emit(json.dumps(result))
        return
    for line in result["summary"]:
        emit(line)
