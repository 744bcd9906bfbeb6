"""What the user reads on stderr while a command works: notes and counted work."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

PLAIN_SECONDS = 10.0
"""Without a terminal, a line is printed at most so often, in seconds."""


class Reporter:
    """Speaks to the user on stderr: notes, counted work, and training metrics.

    Args:
        quiet: say nothing but errors.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self.live = self.console.is_terminal and not quiet
        self._last: dict[str, float] = {}

    def note(self, text: str) -> None:
        """One line, or several."""
        self.console.print(text, markup=False, soft_wrap=True)

    def counted(self, what: str) -> Any:
        """Return a callback (done, total) that prints at most every PLAIN_SECONDS, nothing for short work."""
        started = time.monotonic()

        def report(done: int, total: int) -> None:
            now = time.monotonic()
            if now - self._last.get(what, started) >= PLAIN_SECONDS or (
                done >= total and now - started > PLAIN_SECONDS
            ):
                self._last[what] = now
                self.note(f"{what}: {done:,} of {total:,}")

        return report


def table_text(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Lay a table out as plain text.

    Args:
        head: names of the columns.
        rows: cells, as many a row as there are columns.
        right: numbers of the columns that are aligned to the right.

    Returns:
        Lines without colour, one a row, never wrapped.
    """
    table = Table(*head, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, column in enumerate(table.columns):
        column.justify = "right" if number in right else "left"
        column.no_wrap = True
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    file = io.StringIO()
    console = Console(file=file, color_system=None, width=10_000)
    console.print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())
