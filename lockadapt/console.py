"""What the user reads: results on stdout, notes and counted work on stderr, no control characters."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

PLAIN_SECONDS = 10.0
"""Without a terminal, a line is printed at most so often, in seconds."""

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""What moves a cursor, colours text or turns it around, and halves of characters; not line ends and tabs."""


def printable(text: str) -> str:
    """Return text as it may be printed: the control characters of rows and file names are written out."""
    return _CONTROL.sub(_written_out, text)


def emit(text: object = "", *, end: str = "\n", error: bool = False) -> None:
    """Print a result on stdout, or a message on stderr; all of the command line's output goes through here.

    Args:
        text: what is printed, through `printable`.
        end: what follows it.
        error: print on stderr.
    """
    if not error:
        print(printable(str(text)), end=end, flush=True)
        return
    try:
        print(printable(str(text)), end=end, file=sys.stderr, flush=True)
    except OSError:
        # Messages that cannot be written, as where they go to a full disk, leave the exit code as it is.
        # What is buffered goes nowhere: else Python would end with a code of its own.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _written_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class Reporter:
    """Speaks to the user on stderr: notes, counted work, and training metrics.

    Args:
        quiet: say nothing but errors.
    """

    def __init__(self, quiet: bool = False) -> None:
        from rich.console import Console  # the command line's help does without

        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self.live = self.console.is_terminal and not quiet
        self._last: dict[str, float] = {}

    def note(self, text: str) -> None:
        """One line, or several."""
        self.console.print(printable(text), markup=False, soft_wrap=True)

    def counted(self, what: str) -> Any:
        """Return a callback (done, total) that prints at most every PLAIN_SECONDS, nothing for short work.

        It also says how long the rest takes at the speed so far.
        """
        started = time.monotonic()

        def report(done: int, total: int) -> None:
            now = time.monotonic()
            if now - self._last.get(what, started) >= PLAIN_SECONDS or (
                done >= total and now - started > PLAIN_SECONDS
            ):
                self._last[what] = now
                left = (now - started) * (total - done) / max(done, 1)
                rest = f", about {_duration(left)} left" if 0 < done < total else ""
                self.note(f"{what}: {done:,} of {total:,}{rest}")

        return report


def _duration(seconds: float) -> str:
    """A time in the largest fitting unit."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def table_text(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Lay a table out as plain text.

    Args:
        head: names of the columns.
        rows: cells, as many a row as there are columns.
        right: numbers of the columns that are aligned to the right.

    Returns:
        Lines without colour, one a row, never wrapped.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

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
