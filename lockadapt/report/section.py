"""A part of a report's page, and the few shapes that parts have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lockadapt.report.read import RunFiles


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        name: says what it is in `--json`, and is its anchor.
        title: its heading.
        kind: which block of the template shows it.
        content: what that block reads.
    """

    name: str
    title: str
    kind: str
    content: Any


def table(head: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> dict[str, Any]:
    """Content of a table; nothing without rows, so that the section is left out."""
    return {"head": list(head), "rows": [list(row) for row in rows], "note": note} if rows else {}


def run_table(
    runs: Sequence[RunFiles], head: Sequence[str], rows: Sequence[Sequence[str]], note: str = ""
) -> dict[str, Any]:
    """A table whose first column names the run; of one run alone it is left out."""
    first = 0 if len(runs) > 1 else 1
    return table(head[first:], [row[first:] for row in rows], note)


def named(title: str, run: RunFiles, runs: Sequence[RunFiles]) -> str:
    """A heading that names the run where there are several."""
    return title if len(runs) == 1 else f"{title}: {run.name}"
