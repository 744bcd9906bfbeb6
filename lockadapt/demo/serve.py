"""Serves the demo's page, on loopback unless the user names another address."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lockadapt.errors import RecipeError, SetupError


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address.

    Args:
        host: name or IP address.

    Returns:
        False for names other than `localhost`, which may mean anything.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve_demo(
    target: Path,
    images: Path | None,
    address: tuple[str, int | None],
    max_new_tokens: int,
    ready: Callable[[dict[str, Any]], None],
) -> Any:
    """Opens a model and serves its page, in threads of this process.

    Args:
        target: a run or a model folder.
        images: folder to search, for models that embed.
        address: host, and port or None for a free one from 7860.
        max_new_tokens: of an answer.
        ready: told `{"url", "tabs"}` when the page answers.

    Returns:
        The page, whose `close()` ends it.

    Raises:
        SetupError: Gradio is not installed, or the port is taken.
        RecipeError: see `DemoModel.open`.
    """
    if find_spec("gradio") is None:
        raise SetupError("Gradio is not installed", where="demo", fix="pip install 'lockadapt[demo]'")
    from lockadapt.demo.model import DemoModel
    from lockadapt.demo.page import NO_SHARING, UPLOAD, build_page

    model = DemoModel.open(target, images, max_new_tokens)
    page = build_page(model, target.resolve().name)
    host, port = address
    try:
        _, url, _ = page.queue(default_concurrency_limit=1, max_size=32).launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            inbrowser=False,
            prevent_thread_lock=True,
            max_file_size=UPLOAD,
            show_error=True,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            footer_links=[],
            css=NO_SHARING,
        )
    except OSError as error:
        raise SetupError(
            f"cannot listen: {' '.join(str(error).split())[:120]}",
            where=f"--host {host}" + (f" --port {port}" if port else ""),
            fix="choose another --port",
        ) from error
    except ValueError as error:
        raise RecipeError(f"cannot listen: {error}", where=f"--host {host}", fix="name an address") from error
    ready({"url": url, "tabs": model.tabs})
    return page
