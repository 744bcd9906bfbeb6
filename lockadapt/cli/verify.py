"""`lockadapt verify`: is a folder what was trained, and are its files what was written?"""

from __future__ import annotations

import json
from pathlib import Path

import typer


def verify(
    folder: Path = typer.Argument(help="Merged or exported folder, made by lockadapt or by anything else."),
    against: Path = typer.Option(None, "--against", help="Run folder that it must compute the same as."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Errors only."),
) -> None:
    """Prove a folder in a fresh process: its files, its keys, that it sees, and with --against that it is the trained model."""
    from lockadapt.console import Reporter
    from lockadapt.exports.verify import verify_folder

    result = verify_folder(folder, against, Reporter(quiet))
    if as_json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name}: {f'{value:.4g}' if isinstance(value, float) else value}")
