"""`lockadapt search`: find the images of a folder that match a text or an image."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import typer

from lockadapt.console import emit
from lockadapt.processes import is_first


def search(
    target: Path = typer.Argument(help="Run folder with an itc objective, or a folder merged from one."),
    images: Path = typer.Option(..., "--images", help="Folder of images to search, including subfolders."),
    query: list[str] = typer.Option([], "--query", help="Text to search for; may be repeated."),
    image: list[Path] = typer.Option([], "--image", help="Image to search for; may be repeated."),
    index: Path = typer.Option(
        None, "--index", help="Index folder; default: one in ~/.cache/lockadapt/search."
    ),
    top: int = typer.Option(5, "--top", min=1, help="Number of results per query."),
    count: int = typer.Option(
        None, "--processes", min=1, max=1024, help="Embed in several processes on this machine, one a GPU."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print errors only."),
) -> int:
    """Search a folder of images.

    Each image is embedded once; later searches embed only new or changed images.
    """
    if count is not None and count > 1:
        from lockadapt.cli.launching import launch

        return launch(sys.argv[1:], count)
    from lockadapt.console import Reporter
    from lockadapt.evaluation.search import Queries
    from lockadapt.evaluation.search import search as find

    report = find(target, images, Queries(query, image), index, top, Reporter(quiet))
    searches = report["searches"]
    if not is_first():
        return 0
    if as_json:
        # The results of a single query also appear at the top level, where scripts expect them.
        emit(json.dumps({**(searches[0] if len(searches) == 1 else {}), **report}))
        return 0
    for search_result in searches:
        if len(searches) > 1:
            emit(search_result["query"])
        for hit in search_result["results"]:
            emit(f"{hit['score']:.4f}  {images / hit['file']}")
    return 0
