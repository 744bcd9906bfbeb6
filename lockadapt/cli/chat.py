"""`lockadapt chat`: ask a run or a model about an image."""

from __future__ import annotations

import sys
from pathlib import Path

import typer


def chat(
    target: Path = typer.Argument(help="Run folder, or a stock LLaVA or FastVLM folder."),
    image: Path = typer.Option(..., "--image", help="Picture to talk about."),
    question: list[str] = typer.Option(
        [], "--question", help="Ask this and leave; may be repeated for several turns."
    ),
    max_new_tokens: int = typer.Option(64, "--max-new-tokens", min=1, help="Longest answer."),
) -> None:
    """Talk about an image. Without --question, questions are read from the terminal, one a line."""
    from lockadapt.evaluation.chat import Chat

    talk = Chat.open(target, image, max_new_tokens)
    if question:
        for text in question:
            print(talk.ask(text))
        return
    interactive = sys.stdin.isatty()
    while True:
        if interactive:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            print(talk.ask(line.strip()), flush=True)
