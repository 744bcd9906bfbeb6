"""The demo's page, in Gradio: a tab for each thing that the model can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from lockadapt.console import printable
from lockadapt.demo.model import MAX_DRAWN, MAX_IMAGES, MAX_QUESTION, DemoModel, Exchange
from lockadapt.errors import LockadaptError

UPLOAD = "20mb"
"""Largest file that the page takes."""
REFUSED = "⚠ Refused: "
"""Begins an answer of the page instead of the model."""
NO_SHARING = 'button[aria-label="Share"] {display: none !important}'
"""Gradio's pictures have a button that uploads them to the Hub."""
KEPT = 3600
"""Seconds after which uploaded files are deleted."""


def build_page(model: DemoModel, name: str) -> gr.Blocks:
    """Makes the page.

    Args:
        model: answers it.
        name: of the model, for the page's heading.

    Returns:
        The page, not served yet.
    """
    tabs: dict[str, Callable[[DemoModel], None]] = {"chat": _chat, "search": _search, "draw": _draw}
    with gr.Blocks(title=f"lockadapt: {name}", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        gr.Markdown(f"# {_plain(name)}\n\nIt runs on this machine; answers are greedy, and may be wrong.")
        for tab in model.tabs:
            with gr.Tab(tab.capitalize()):
                tabs[tab](model)
    return page


def _chat(model: DemoModel) -> None:
    def respond(message: dict[str, Any], history: list[dict[str, Any]]) -> Iterator[str]:
        images = [Path(file) for file in message.get("files") or ()]
        try:
            yield from model.stream(_exchanges(history), images, message.get("text") or "")
        except LockadaptError as error:
            # An exception would leave the page's text box locked.
            yield REFUSED + _words(error, images)

    gr.ChatInterface(
        respond,
        multimodal=True,
        chatbot=gr.Chatbot(
            height=460, buttons=["copy"], render_markdown=False, feedback_options=None, label="Conversation"
        ),
        textbox=gr.MultimodalTextbox(
            sources=["upload"],
            file_types=["image"],
            file_count="multiple",
            max_plain_text_length=MAX_QUESTION,
            placeholder=f"Ask about images (up to {MAX_IMAGES} in a conversation)",
            label="Question",
        ),
        flagging_mode="never",
        analytics_enabled=False,
        api_visibility="private",
    )


def _exchanges(history: Sequence[dict[str, Any]]) -> list[Exchange]:
    """Pairs of question and answer; what was refused is left out."""
    pairs: list[Exchange] = []
    images: list[Path] = []
    texts: list[str] = []
    for message in history:
        parts = message["content"] if isinstance(message["content"], list) else [message["content"]]
        files = [Path(part["file"]["path"]) for part in parts if isinstance(part, dict) and "file" in part]
        words = [part if isinstance(part, str) else part.get("text") for part in parts]
        text = "\n".join(word for word in words if word)
        if message["role"] == "assistant":
            if texts and not text.startswith(REFUSED):
                pairs.append(Exchange(images, "\n".join(texts), text))
            images, texts = [], []
        else:
            images, texts = images + files, texts + ([text] if text else [])
    return pairs


def _search(model: DemoModel) -> None:
    def find(text: str, file: str | None) -> list[tuple[Any, str]]:
        path = Path(file) if file else None
        return _told(lambda: model.search(text, path), [path] if path else [])

    with gr.Row():
        text = gr.Textbox(label="Text to search for", max_length=MAX_QUESTION, scale=3)
        file = gr.File(label="… or an image", file_types=["image"], type="filepath", height=120)
    button = gr.Button("Search", variant="primary")
    gallery = gr.Gallery(label="Nearest images", columns=4, height="auto", buttons=[])
    gr.on([button.click, text.submit], find, [text, file], gallery, api_visibility="private")


def _draw(model: DemoModel) -> None:
    def draw(prompt: str, count: float, seed: float) -> list[Any]:
        return _told(lambda: model.draw(prompt, int(count), int(seed)))

    prompt = gr.Textbox(label="Prompt", max_length=MAX_QUESTION)
    with gr.Row():
        count = gr.Slider(1, MAX_DRAWN, 4, step=1, label="Images")
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1)
    button = gr.Button("Draw", variant="primary")
    gallery = gr.Gallery(label="Generated images", columns=4, height="auto", buttons=[])
    gr.on([button.click, prompt.submit], draw, [prompt, count, seed], gallery, api_visibility="private")


def _told(work: Callable[[], Any], files: Sequence[Path] = ()) -> Any:
    try:
        return work()
    except LockadaptError as error:
        raise gr.Error(_plain(_words(error, files)), duration=None, print_exception=False) from error


def _words(error: LockadaptError, files: Sequence[Path]) -> str:
    """A message for the page, with the names of uploaded files and not their places on this machine."""
    fix = f". {error.fix[0].upper()}{error.fix[1:]}" if error.fix else ""
    text = printable(error.message + fix)
    for file in files:
        text = text.replace(f"{file.parent}/", "")
    return text


def _plain(text: str) -> str:
    return printable(text).replace("<", "&lt;").replace("\n", " ")
