"""How the rows of an objective with several sources follow each other: each in its order, mixed by weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

NextRow = Callable[[int], int]
"""Gives the next row of a source for a lane; see `lockadapt.data.stream.StreamRows.drawn`."""


@dataclass(frozen=True)
class SourceDraw:
    """How the rows of one source are drawn.

    Attributes:
        weight: its share of the objective's samples, relative to the other sources; None: its number of rows.
        shuffle: in a new order each epoch; else in the order of the source.
    """

    weight: float | None = None
    shuffle: bool = True


@dataclass(frozen=True)
class SourceRows:
    """Rows of one source, to be mixed with those of others.

    Attributes:
        draw: how they are drawn.
        count: how many there are, at least one.
        next_row: gives one after the other, without end.
    """

    draw: SourceDraw
    count: int
    next_row: NextRow


def mixed(sources: Sequence[SourceRows]) -> NextRow:
    """Mixes sources by credit: each earns its share with every row, and the richest gives the row and pays 1.

    After any number of rows each has given its share to within one row for each other source; without
    weights all are through with an epoch at the same time.

    Args:
        sources: at least one.

    Returns:
        What gives the next row.
    """
    if len(sources) == 1:
        return sources[0].next_row
    share = shares([(source.draw, source.count) for source in sources])
    credit = [0.0] * len(sources)

    def next_row(lane: int) -> int:
        for number, part in enumerate(share):
            credit[number] += part
        chosen = max(range(len(credit)), key=credit.__getitem__)
        credit[chosen] -= 1.0
        return sources[chosen].next_row(lane)

    return next_row


def shares(sources: Sequence[tuple[SourceDraw, int]]) -> list[float]:
    """Fractions of an objective's samples, by source.

    Args:
        sources: how each is drawn, and its rows; one without rows gives nothing.

    Returns:
        Fractions that add up to 1.
    """
    weights = [
        0.0 if not count else float(count) if draw.weight is None else draw.weight for draw, count in sources
    ]
    return [weight / sum(weights) for weight in weights]


def one_by_one(rows: Iterator[int]) -> NextRow:
    """The rows of an iterator without end, whatever the lane."""
    return lambda lane: next(rows)
