"""`lockadapt quickstart`: the whole way on built-in models and pictures, offline, in minutes."""

from __future__ import annotations

import json
from pathlib import Path

import typer


def quickstart(
    output: Path = typer.Option(
        Path("quickstart"), "--output", "-o", help="Folder for data, run, merged model and picture."
    ),
    as_json: bool = typer.Option(False, "--json", help="End with one JSON object on stdout."),
) -> None:
    """Draw pictures, bridge two tiny models, train, evaluate beside a blind run, merge, prove, and show the result."""
    from lockadapt.console import Reporter
    from lockadapt.quickstart.tour import tour

    result = tour(output, Reporter())
    if as_json:
        print(json.dumps(result))
        return
    for line in result["summary"]:
        print(line)
