"""What a run on several processes begins with: their number, which stays the same, and what is made first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lockadapt import processes
from lockadapt.errors import RecipeError, VerificationError
from lockadapt.files import write_json

FILE = "processes.json"
"""In the run folder, of runs that began on several processes."""

Made = TypeVar("Made")


def run_processes(folder: Path, resume: bool) -> int:
    """The number of processes that a run began with, which its steps are made for; all of them must call.

    Args:
        folder: the run folder.
        resume: whether it is gone on with, maybe on another number.

    Returns:
        The number.

    Raises:
        VerificationError: the file that says so is damaged.
        DiskError: it cannot be written.
    """
    file, count = folder / FILE, processes.count()
    if not resume:
        if count > 1 and processes.is_first():
            write_json(file, {"processes": count})
        return count
    if not file.is_file():
        return 1
    try:
        return max(1, int(json.loads(file.read_text(encoding="utf-8"))["processes"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VerificationError(f"is damaged: {error}", where=str(file), fix="train anew") from error


def own_rows(rows: int, began_with: int, where: str) -> int:
    """Rows of a micro-batch on each process, so that all together have as many as when the run began.

    Args:
        rows: on each of the processes that it began with.
        began_with: their number.
        where: the recipe key that says `rows`.

    Returns:
        Rows.

    Raises:
        RecipeError: the processes that there are now cannot share them evenly.
    """
    total, count = rows * began_with, processes.count()
    if total % count:
        raise RecipeError(
            f"{count} processes cannot share the run's {total} rows evenly",
            where=where,
            fix=f"resume with {began_with} processes, or another number that divides {total}",
        )
    return total // count


def first_then_others(make: Callable[[], Made]) -> Made:
    """Makes something on the first process, and then on the others, which find the files that it wrote."""
    made = processes.first(make)
    return processes.together(lambda: make() if made is None else made)
