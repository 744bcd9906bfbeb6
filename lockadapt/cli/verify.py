"""`lockadapt verify`: check a model folder, alone or against the run it came from."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from lockadapt.console import emit


def verify(
    folder: Path = typer.Argument(help="Merged or exported folder, made by lockadapt or any other tool."),
    against: Path = typer.Option(
        None, "--against", help="Run folder whose outputs the model must reproduce."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print errors only."),
) -> None:
    """Verify a folder in a fresh process, and with --against its equality with the trained model."""
    from lockadapt.api.steps import verify as check

    result = check(folder, against=against, quiet=quiet).to_json()
    if as_json:
        emit(json.dumps(result))
        return
    for name, value in result.items():
        emit(f"{name}: {f'{value:.4g}' if isinstance(value, float) else value}")
