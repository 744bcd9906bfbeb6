"""`lockadapt demo`: a page to try a model on in the browser."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Annotated

import typer

from lockadapt.console import emit


def demo(
    target: Path = typer.Argument(help="Run folder, or a model folder such as a merged one."),
    images: Annotated[
        Path | None, typer.Option("--images", help="Folder of images to search, for models trained with itc.")
    ] = None,
    host: str = typer.Option(
        "127.0.0.1",
        "--host",
        help="Address to listen on. With another one than the default, everyone who reaches this machine can "
        "use the page: it has no password.",
    ),
    port: Annotated[
        int | None,
        typer.Option("--port", min=1, max=65535, help="Port; default: a free one from 7860."),
    ] = None,
    max_new_tokens: int = typer.Option(
        64, "--max-new-tokens", min=1, help="Maximum number of tokens per answer."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout when it is ready."),
) -> None:
    """Serve a page on this machine: chat about images, search a folder, generate images.

    Only the tabs that the model was trained for are there. Ctrl-C ends it. Needs Gradio: lockadapt[demo].
    """
    from lockadapt.demo.serve import is_loopback, serve_demo

    if not is_loopback(host):
        emit(
            f"warning: the page listens on {host}: everyone who reaches this machine can use the model and "
            "see the images that are searched; there is no password and no encryption",
            error=True,
        )
    page = serve_demo(
        target,
        images,
        (host, port),
        max_new_tokens,
        lambda result: emit(
            json.dumps(result)
            if as_json
            else f"{result['url']}  ({', '.join(result['tabs'])}); Ctrl-C ends it"
        ),
    )
    try:
        threading.Event().wait()
    finally:
        page.close(verbose=False)
