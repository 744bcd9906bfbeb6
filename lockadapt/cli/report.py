"""`lockadapt report`: one HTML file about one run, or about several side by side."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from lockadapt.console import emit


def report(
    runs: list[Path] = typer.Argument(help="Run folders, finished or still training."),
    output: Path = typer.Option(
        None, "--output", "-o", help="HTML file; default: report.html in the first run folder."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout."),
) -> None:
    """Show runs as one self-contained HTML file: curves, scores, predictions beside their pictures."""
    from lockadapt.report.write import write_report

    result = write_report(runs, output)
    emit(json.dumps(result) if as_json else result["output"])
