"""`lockadapt chat`: ask a run or a model about images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lockadapt.errors import DataError, SafetyError

if TYPE_CHECKING:
    from lockadapt.evaluation.chat import Chat

SHOW = "/image "


def chat(
    target: Path = typer.Argument(help="Run folder, or a stock folder such as a merged one."),
    image: list[Path] = typer.Option(
        [], "--image", help="Picture to talk about; may be repeated for several pictures in the first turn."
    ),
    question: list[str] = typer.Option(
        [], "--question", help="Ask this and leave; may be repeated for several turns."
    ),
    max_new_tokens: int = typer.Option(64, "--max-new-tokens", min=1, help="Longest answer."),
) -> None:
    """Talk about images. Without --question, questions are read from the terminal, one a line.

    The line `/image FILE` adds a picture to the next question. Every answer sees all pictures and turns so far.
    """
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
        try:
            _answer(talk, line.strip())
        except (DataError, SafetyError) as error:
            # Whoever types can type again; a script must not go on as if the picture were there.
            if not interactive:
                raise
            print(f"error: {error}", file=sys.stderr)


def _answer(talk: Chat, line: str) -> None:
    if line.startswith(SHOW):
        talk.show(Path(line.removeprefix(SHOW).strip()).expanduser())
    elif line:
        print(talk.ask(line), flush=True)
