"""The one shape of an export target: a name, why it cannot hold a run, and what writes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockadapt.console import Reporter
from lockadapt.runs.run import Run


@dataclass(frozen=True)
class ExportTarget:
    """One thing that a run can be written as.

    Attributes:
        name: what the user says.
        content: what is written, in a few words, for `--help` and messages.
        refusal: why this run cannot be written so, from its files' names and configs alone, or None. Nothing
            is loaded.
        write: writes a new folder, proves it in a fresh process by the client's own code, and returns what
            `lockadapt export --json` prints beside `target` and `output`. A folder that fails its proof is
            not kept.
    """

    name: str
    content: str
    refusal: Callable[[Run], str | None]
    write: Callable[[Run, Path, Reporter], dict[str, Any]]
