"""Writes a run as one stock folder: what `lockadapt merge` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lockadapt.console import Reporter
from lockadapt.exports.merge import merge_run
from lockadapt.exports.targets.base import ExportTarget
from lockadapt.runs.run import Run


def refusal(run: Run) -> str | None:
    """A merged folder answers, which a dual encoder does not."""
    if run.dual:
        return (
            "the run trained a dual encoder, which answers nothing (--to dual or --to sentence-transformers)"
        )
    return None


def write(run: Run, output: Path, reporter: Reporter) -> dict[str, Any]:
    """See `merge_run`."""
    return merge_run(run, output, reporter)


MERGED = ExportTarget("merged", "one Transformers model folder", refusal, write)
