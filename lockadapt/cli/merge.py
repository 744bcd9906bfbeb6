"""`lockadapt merge`: a run, or a base and adapters, become one stock folder, proven equal."""

from __future__ import annotations

import json
from pathlib import Path

import typer


def merge(
    source: str = typer.Argument(help="Run folder; or with --adapter a stock folder or Hub id."),
    output: Path = typer.Option(None, "--output", "-o", help="Folder to write; must be new or empty."),
    adapter: list[str] = typer.Option(
        [], "--adapter", help="PEFT folder or run to add to the stock folder, with a weight: A:0.7."
    ),
    base: str = typer.Option(
        "dequantized", "--base", help="Of a quantized run: dequantized (what was trained) or original."
    ),
    compare: bool = typer.Option(
        False, "--compare", help="Merge a run both ways, print what each is worth, write nothing."
    ),
    samples: int = typer.Option(None, "--samples", min=1, help="Test samples for --compare; default: all."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Errors only."),
) -> None:
    """Fold adapters and projector into one folder that stock Transformers loads, and prove it in a fresh process."""
    from lockadapt.console import Reporter
    from lockadapt.exports.merging import merge_command, text_of

    result = merge_command(source, output, adapter, base, compare, samples, Reporter(quiet))
    print(json.dumps(result) if as_json else text_of(result))
