"""`lockadapt export`: export a run to a verified folder for another client."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from lockadapt.console import emit


def export(
    run: Path = typer.Argument(help="Run folder."),
    to: str = typer.Option(
        ...,
        "--to",
        help="merged, bridge, adapter, adapter-full or gguf for runs that generate; dual, "
        "sentence-transformers or "
        "colpali for runs that embed.",
    ),
    output: Path = typer.Option(..., "--output", "-o", help="Output folder; must be new or empty."),
    llama_cpp: Path = typer.Option(None, "--llama-cpp", help="Folder of the llama.cpp sources, for gguf."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print errors only."),
) -> None:
    """Export a run for another client, and verify its outputs in a fresh process."""
    from lockadapt.api.steps import export as write

    result = write(run, to=to, output=output, llama_cpp=llama_cpp, quiet=quiet)
    emit(json.dumps(result.to_json()) if as_json else result.output)
