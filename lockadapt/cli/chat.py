"""`lockadapt chat`: ask a run or a merged model about images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lockadapt.console import emit
from lockadapt.errors import DataError, SafetyError

if TYPE_CHECKING:
    from lockadapt.evaluation.chat import Chat

SHOW = "/image "


def chat(
    target: Path = typer.Argument(help="Run folder, or a model folder such as a merged one."),
    image: list[Path] = typer.Option(
        [], "--image", help="Image to ask about; repeat for several images in the first turn."
    ),
    question: list[str] = typer.Option(
        [], "--question", help="Ask one question and exit; repeat for several turns."
    ),
    max_new_tokens: int = typer.Option(
        64, "--max-new-tokens", min=1, help="Maximum number of tokens per answer."
    ),
    boxes: Annotated[
        Path | None,
        typer.Option("--boxes", help="Draw the boxes that an answer names on the last image; write it here."),
    ] = None,
) -> None:
    """Ask questions about images. Without --question, read questions from standard input, one per line.

    The line `/image FILE` adds an image to the next question. Every answer sees all previous images and
    turns.
    """
    from lockadapt.evaluation.chat import Chat, picture_format

    if boxes is not None:
        picture_format(boxes)  # before a model is loaded
    talk = Chat.open(target, image, max_new_tokens, lambda text: emit(text, error=True))
    if question:
        for text in question:
            _reply(talk, text, boxes)
        return
    interactive = sys.stdin.isatty()
    while True:
        if interactive:
            emit("> ", end="", error=True)
        line = sys.stdin.readline()
        if not line:
            return
        try:
            _answer(talk, line.strip(), boxes)
        except (DataError, SafetyError) as error:
            # An interactive user can try again; a script must not continue without the image.
            if not interactive:
                raise
            emit(f"error: {error}", error=True)


def _answer(talk: Chat, line: str, boxes: Path | None) -> None:
    if line.startswith(SHOW):
        talk.show(Path(line.removeprefix(SHOW).strip()).expanduser())
    elif line:
        _reply(talk, line, boxes)


def _reply(talk: Chat, question: str, boxes: Path | None) -> None:
    answer = talk.ask(question)
    emit(answer)
    if boxes is not None:
        drawn = talk.draw_boxes(answer, boxes)
        emit(f"{drawn} boxes: {boxes}" if drawn else "the answer names no box", error=True)
