"""`lockadapt merge`: one run, adapters stacked on a base, or both ways to merge a run compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from lockadapt.console import Reporter
from lockadapt.errors import RecipeError
from lockadapt.exports.compare import UNMERGED, compare_merges, comparison_text
from lockadapt.exports.merge import merge_run
from lockadapt.exports.stack import merge_stack, parse_adapter
from lockadapt.exports.stock_folder import BaseMode
from lockadapt.runs.run_folder import BASE, is_run


@dataclass(frozen=True)
class MergeRequest:
    """What the command line says.

    Attributes:
        source: a run folder; with adapters a stock folder or Hub id.
        output: a new folder; None only to compare.
        adapters: see `parse_adapter`.
        base: of a quantized run.
        compare: merge both ways and write nothing.
        samples: test samples that comparing scores; None: all.
        force_base: accept another base than the one that an adapter was trained on.
    """

    source: str
    output: Path | None
    adapters: Sequence[str] = ()
    base: str = "dequantized"
    compare: bool = False
    samples: int | None = None
    force_base: bool = False


def merge_command(request: MergeRequest, reporter: Reporter) -> dict[str, Any]:
    """Runs `merge_run`, `merge_stack` or `compare_merges`.

    Args:
        request: what was asked for.
        reporter: told of progress.

    Returns:
        Their result.

    Raises:
        RecipeError: what was asked for does not go together.
    """
    source, adapters = Path(request.source), request.adapters
    if request.base not in get_args(BaseMode):
        raise RecipeError(f"there is no base {request.base!r}", where="--base", fix="dequantized or original")
    if adapters and is_run(source):
        raise RecipeError(
            f"{source} is a run, which has its own adapter",
            where="--adapter",
            fix=f"name its base: lockadapt merge {source / BASE} --adapter {source} --adapter …",
        )
    if request.samples is not None and not request.compare:
        raise RecipeError("counts what --compare scores", where="--samples", fix="add --compare")
    if request.compare:
        if request.output is not None:
            raise RecipeError("--compare writes nothing", where="--output", fix="leave one of the two out")
        return compare_merges(source, request.samples, reporter)
    if request.output is None:
        raise RecipeError("is missing", where="--output", fix="name a new folder")
    if not adapters and request.force_base:
        raise RecipeError("is of --adapter", where="--force-base", fix="leave it out: a run knows its base")
    if not adapters:
        return merge_run(source, request.output, reporter, request.base)  # type: ignore[arg-type]
    if request.base != "dequantized":
        raise RecipeError("is of quantized runs", where="--base", fix="leave it out beside --adapter")
    stack = [parse_adapter(text) for text in adapters]
    return merge_stack(request.source, stack, request.output, reporter, force_base=request.force_base)


def text_of(result: Mapping[str, Any]) -> str:
    """For the terminal: the table, or where the folder is."""
    return comparison_text(result) if UNMERGED in result else str(result["output"])
