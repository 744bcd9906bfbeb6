"""`lockadapt search`: the images of a folder that fit a text, or resemble an image."""

from __future__ import annotations

import json
from pathlib import Path

import typer


def search(
    target: Path = typer.Argument(
        help="Run folder with an objective of the kind itc, or one merged from it."
    ),
    images: Path = typer.Option(..., "--images", help="Folder that is searched, subfolders too."),
    query: list[str] = typer.Option([], "--query", help="What to look for; may be repeated."),
    image: list[Path] = typer.Option([], "--image", help="Look for what resembles this; may be repeated."),
    index: Path = typer.Option(
        None, "--index", help="Folder of the index; default: one in ~/.cache/lockadapt/search."
    ),
    top: int = typer.Option(5, "--top", min=1, help="Images to name for each query."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Errors only."),
) -> None:
    """Search a folder of images. Each image is embedded once; later only what is new or changed."""
    from lockadapt.console import Reporter
    from lockadapt.evaluation.search import search as find

    found = find(target, images, query, image, index, top, Reporter(quiet))
    searches = found["searches"]
    if as_json:
        # The answer to one query stands at the top, where scripts look for it.
        print(json.dumps({**(searches[0] if len(searches) == 1 else {}), **found}))
        return
    for one in searches:
        if len(searches) > 1:
            print(one["query"])
        for hit in one["results"]:
            print(f"{hit['score']:.4f}  {images / hit['file']}")
