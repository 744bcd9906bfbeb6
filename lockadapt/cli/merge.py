"""`lockadapt merge`: a run becomes one stock folder, proven equal."""

from __future__ import annotations

import json
from pathlib import Path

import typer


def merge(
    run: Path = typer.Argument(help="Run folder."),
    output: Path = typer.Option(..., "--output", "-o", help="Folder to write; must be new or empty."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Errors only."),
) -> None:
    """Fold adapter and projector into one folder that stock Transformers loads, and prove it in a fresh process."""
    from lockadapt.export.merge import merge_run
    from lockadapt.training.progress import Reporter

    result = merge_run(run, output, Reporter(quiet))
    if as_json:
        print(json.dumps(result))
        return
    print(result["output"])
