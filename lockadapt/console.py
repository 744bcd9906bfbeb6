"""What the user reads on stderr while a command works: notes and counted work."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console

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
