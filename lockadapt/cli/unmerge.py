"""`lockadapt unmerge`: an adapter is taken out of a merged folder again, and the base is proved to be back."""

from __future__ import annotations

import json
from pathlib import Path

import typer


def unmerge(
    folder: Path = typer.Argument(help="Merged stock folder."),
    adapter: list[str] = typer.Option(..., "--adapter", help="As it was merged: PEFT folder or run, A:0.7."),
    base: str = typer.Option(..., "--base", help="Stock folder or Hub id that must come back."),
    output: Path = typer.Option(..., "--output", "-o", help="Folder to write; must be new or empty."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Errors only."),
) -> None:
    """Subtract adapters from a merged folder, and prove that every tensor is the base's again, to two roundings."""
    from lockadapt.console import Reporter
    from lockadapt.exports.stack import parse_adapter
    from lockadapt.exports.unmerge import unmerge as take_out

    adapters = [parse_adapter(text) for text in adapter]
    result = take_out(folder, adapters, base, output, Reporter(quiet))
    print(json.dumps(result) if as_json else result["output"])
