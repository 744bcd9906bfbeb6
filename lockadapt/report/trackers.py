"""Sends followed samples, their pictures beside the predictions, to the trackers of `training.report_to`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

HEAD = ("picture", "question", "expected", "answer", "right")


@dataclass(frozen=True)
class TrackedRow:
    """A prediction beside its picture.

    Attributes:
        picture: small, RGB; None: a question without one, or one that cannot be opened.
        question, truth, answer: texts.
        right: whether the answer is the expected text; None: the objective is not scored so.
    """

    picture: Image.Image | None
    question: str
    truth: str
    answer: str
    right: bool | None


Tables = Mapping[str, Sequence[TrackedRow]]
"""Rows by the name that a tracker shows them under."""


def send(trackers: Sequence[str], tables: Tables, step: int, folder: Path) -> None:
    """Logs tables of predictions to the runs that Transformers' own callbacks have opened.

    Args:
        trackers: `trackio`, `wandb`, `tensorboard`.
        tables: predictions of one validation.
        step: optimiser step.
        folder: where TensorBoard's event file is written.
    """
    for name in trackers:
        {"trackio": _to_trackio, "wandb": _to_wandb, "tensorboard": _to_tensorboard}[name](
            tables, step, folder
        )


def _to_trackio(tables: Tables, step: int, folder: Path) -> None:
    import trackio

    if trackio.context_vars.current_run.get() is None:
        return
    for name, rows in tables.items():
        data = [[row.picture and trackio.Image(row.picture), *_texts(row)] for row in rows]
        trackio.log({name: trackio.Table(columns=list(HEAD), data=data)}, step=step)


def _to_wandb(tables: Tables, step: int, folder: Path) -> None:
    import wandb

    if wandb.run is None:
        return
    for name, rows in tables.items():
        shown = [
            wandb.Image(row.picture, caption=f"{row.question}\n{row.answer} (expected: {row.truth})")
            for row in rows
            if row.picture is not None
        ]
        # The step axis of Transformers' own callback; wandb's internal step would be moved by `step=`.
        wandb.log({name: shown, "train/global_step": step})


def _to_tensorboard(tables: Tables, step: int, folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for name, rows in tables.items():
            lines = ["number", *HEAD[1:]], ["---"] * len(HEAD)
            table = [[str(number), *_texts(row)] for number, row in enumerate(rows, 1)]
            text = "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in [*lines, *table])
            writer.add_text(name, text, step)
            for number, row in enumerate(rows, 1):
                if row.picture is not None:
                    pixels = np.asarray(row.picture)
                    writer.add_image(f"{name}/{number:02d}", pixels, step, dataformats="HWC")


def _texts(row: TrackedRow) -> list[str]:
    verdict = "" if row.right is None else "yes" if row.right else "no"
    return [row.question, row.truth, row.answer, verdict]


def _cell(text: str) -> str:
    """A text that stays in its cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")
