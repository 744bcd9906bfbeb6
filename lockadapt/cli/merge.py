"""`lockadapt merge`: merge a run, or a base and adapters, into one verified model folder."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from lockadapt.console import emit


def merge(
    source: str = typer.Argument(help="Run folder; with --adapter: folder or Hub id of the base model."),
    output: Path = typer.Option(None, "--output", "-o", help="Output folder; must be new or empty."),
    adapter: list[str] = typer.Option(
        [], "--adapter", help="PEFT folder or run to add to the base, with an optional weight: A:0.7."
    ),
    base: str = typer.Option(
        "dequantized",
        "--base",
        help="Base weights for a quantized run: dequantized (those used in training) or original.",
    ),
    compare: bool = typer.Option(
        False,
        "--compare",
        help="Merge a quantized run onto both bases, print the scores of each, write nothing.",
    ),
    samples: int = typer.Option(
        None, "--samples", min=1, help="Number of test samples for --compare; default: all."
    ),
    force_base: bool = typer.Option(
        False, "--force-base", help="With --adapter: accept a base that the adapter was not trained on."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print errors only."),
) -> None:
    """Merge adapters and projector into a folder for plain Transformers, and verify it."""
    from lockadapt.console import Reporter
    from lockadapt.exports.merge_command import MergeRequest, merge_command, text_of

    request = MergeRequest(source, output, adapter, base, compare, samples, force_base)
    result = merge_command(request, Reporter(quiet))
    emit(json.dumps(result) if as_json else text_of(result))
