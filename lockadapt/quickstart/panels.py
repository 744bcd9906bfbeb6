"""Draws the quickstart's final picture: answers, captions, search results and images, in panels."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RIGHT, WRONG, PLAIN = "#1a7f37", "#cf222e", "#24292f"
COLUMNS = 6  # of pictures; a query and FOUND pictures share a row
FOUND = 5
CELL, GAP, LINE, HEADING, TITLE = 1.5, 0.16, 0.19, 0.5, 0.5  # inches
LETTERS = 22  # that fit below a picture in one line


@dataclass(frozen=True)
class Shown:
    """A picture, what stands above and what below it, and whether that is right (None: nobody judges it)."""

    picture: Image.Image
    answer: str = ""
    asked: str = ""
    right: bool | None = None


@dataclass(frozen=True)
class Query:
    """A text and the pictures that it found, the best first; those that are right get a frame."""

    text: str
    results: Sequence[Shown]


def four_panels(
    answers: Sequence[Shown],
    captions: Sequence[Shown],
    queries: Sequence[Query],
    drawn: Sequence[Shown],
    path: Path,
    title: str,
) -> None:
    """Writes a PNG of four panels, one below the other; a panel without items is left out.

    Right texts are green, wrong ones red. Of each query the first FOUND pictures are shown, right ones
    framed.

    Args:
        answers: `asked` is the question, `answer` the model's answer.
        captions: `answer` is the model's caption.
        queries: texts and what they found.
        drawn: `asked` is the prompt, the picture is the model's.
        path: where to; its folder exists.
        title: above all panels.
    """
    from matplotlib.figure import Figure

    grids = (answers, 3), (captions, 2), (drawn, 2)
    height = TITLE + sum(_height(items, lines) for items, lines in grids)
    height += HEADING + len(queries) * (CELL + GAP) if queries else 0.0
    page = _Page(Figure(figsize=(COLUMNS * (CELL + GAP) + GAP, height), facecolor="white"))
    page.text(GAP, TITLE / 2, title, 14)
    top = _grid(page, "Answers", answers, 3, TITLE)
    top = _grid(page, "Captions", captions, 2, top)
    top = _queries(page, queries, top)
    _grid(page, "Images generated from prompts, for combinations seen in training", drawn, 2, top)
    page.figure.savefig(path, dpi=100)


@dataclass(frozen=True)
class _Page:
    """A figure on which things have their place in inches from the top left."""

    figure: Figure

    def picture(self, left: float, top: float, picture: Image.Image, colour: str | None) -> None:
        """Shows a picture of side CELL, framed if there is a colour."""
        wide, high = self.figure.get_size_inches()
        axes = self.figure.add_axes((left / wide, 1 - (top + CELL) / high, CELL / wide, CELL / high))
        axes.imshow(picture, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color=colour or "#d0d7de", linewidth=3.5 if colour else 0.8)

    def text(
        self,
        left: float,
        middle: float,
        text: str,
        size: float,
        colour: str | None = None,
        bold: bool = False,
    ) -> None:
        """Writes text whose middle is at that height; coloured text is centred, plain text begins there."""
        wide, high = self.figure.get_size_inches()
        weight = "bold" if bold else "normal"
        ha = "left" if colour is None else "center"
        style: Any = {"size": size, "color": colour or PLAIN, "weight": weight, "ha": ha, "va": "center"}
        self.figure.text(left / wide, 1 - middle / high, text, **style)


def _height(items: Sequence[Shown], lines: int) -> float:
    """Inches of a panel of pictures with so many lines below each."""
    return HEADING - (-len(items) // COLUMNS) * (CELL + lines * LINE + GAP) if items else 0.0


def _grid(page: _Page, name: str, items: Sequence[Shown], lines: int, top: float) -> float:
    """A heading and pictures with text below; gives where the next panel begins."""
    if items:
        page.text(GAP, top + HEADING / 2, name, 12, bold=True)
    for number, item in enumerate(items):
        row, column = divmod(number, COLUMNS)
        below = top + HEADING + row * (CELL + lines * LINE + GAP)
        _one(page, item, GAP + column * (CELL + GAP), below)
    return top + _height(items, lines)


def _queries(page: _Page, queries: Sequence[Query], top: float) -> float:
    """One row for each query, its text at the left; gives where the next panel begins."""
    if not queries:
        return top
    page.text(GAP, top + HEADING / 2, "Found by words, the best first", 12, bold=True)
    top += HEADING
    for query in queries:
        page.text(GAP, top + CELL / 2, textwrap.fill(query.text, LETTERS - 6), 10)
        for number, shown in enumerate(query.results[:FOUND], 1):
            page.picture(GAP + number * (CELL + GAP), top, shown.picture, RIGHT if shown.right else None)
        top += CELL + GAP
    return top


def _one(page: _Page, item: Shown, left: float, top: float) -> None:
    page.picture(left, top, item.picture, None)
    lines = [(line, PLAIN, False) for line in textwrap.wrap(item.asked, LETTERS)[:2]]
    lines += [
        (line, _colour(item.right) or PLAIN, True) for line in textwrap.wrap(item.answer, LETTERS - 2)[:2]
    ]
    for number, (line, colour, bold) in enumerate(lines):
        page.text(left + CELL / 2, top + CELL + (number + 0.65) * LINE, line, 9, colour, bold)


def _colour(right: bool | None) -> str | None:
    return None if right is None else RIGHT if right else WRONG
