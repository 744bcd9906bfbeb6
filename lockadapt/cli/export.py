"""`lockadapt export`: a run becomes a folder that another client loads, proven equal."""

from __future__ import annotations

import json
from pathlib import Path

import typer


def export(
    run: Path = typer.Argument(help="Run folder."),
    to: str = typer.Option(
        ...,
        "--to",
        help="merged, bridge, adapter, adapter-full or gguf, of runs that answer; dual, sentence-transformers or "
        "colpali, of runs that embed.",
    ),
    output: Path = typer.Option(..., "--output", "-o", help="Folder to write; must be new or empty."),
    llama_cpp: Path = typer.Option(None, "--llama-cpp", help="Folder of llama.cpp's sources, for gguf."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Errors only."),
) -> None:
    """Write a run for another client, and prove in a fresh process that it computes what was trained."""
    from lockadapt.console import Reporter
    from lockadapt.exports.export import export_run

    result = export_run(run, to, output, Reporter(quiet), llama_cpp)
    print(json.dumps(result) if as_json else result["output"])
