"""`lockadapt unmerge`: remove an adapter from a merged folder, and verify that the base is restored."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from lockadapt.console import emit


def unmerge(
    folder: Path = typer.Argument(help="Merged model folder."),
    adapter: list[str] = typer.Option(
        ..., "--adapter", help="PEFT folder or run to remove, with the weight it was merged with: A:0.7."
    ),
    base: str = typer.Option(..., "--base", help="Folder or Hub id of the base that must be restored."),
    output: Path = typer.Option(..., "--output", "-o", help="Output folder; must be new or empty."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print errors only."),
) -> None:
    """Subtract adapters from a merged folder, and verify the base to within two roundings."""
    from lockadapt.console import Reporter
    from lockadapt.exports.stack import parse_adapter
    from lockadapt.exports.unmerge import unmerge as take_out

    adapters = [parse_adapter(text) for text in adapter]
    result = take_out(folder, adapters, base, output, Reporter(quiet))
    emit(json.dumps(result) if as_json else result["output"])
