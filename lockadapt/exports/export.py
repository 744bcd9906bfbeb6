"""Writes a finished run as a target chosen by name: refused before any work, proved by the target itself."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from lockadapt.console import Reporter
from lockadapt.errors import RecipeError
from lockadapt.exports.targets import TARGETS
from lockadapt.exports.targets.gguf import NAME as GGUF
from lockadapt.exports.targets.gguf import gguf_target
from lockadapt.files import require_new
from lockadapt.runs.run import Run, as_run


def export_run(
    run: Path | Run, name: str, output: Path, reporter: Reporter, llama_cpp: Path | None = None
) -> dict[str, Any]:
    """Writes a new folder and proves it in a fresh process by the client's own code.

    Args:
        run: a finished run, or its folder.
        name: of `TARGETS`, or `gguf`.
        output: a new folder; it appears only when every check has passed.
        reporter: told of progress.
        llama_cpp: folder of llama.cpp's sources, which `gguf` needs.

    Returns:
        `{"target", "output", …}`, and the numbers of the proof.

    Raises:
        RecipeError: no such target, or one that cannot hold this run, and why.
        VerificationError: the folder differs from the trained model; nothing is left at `output`.
    """
    targets = {**TARGETS, GGUF: gguf_target(llama_cpp)}
    if name not in targets:
        near = difflib.get_close_matches(name, targets, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise RecipeError(
            f"there is no target {name!r}", where="--to", fix=f"{hint}There are: {', '.join(targets)}"
        )
    target = targets[name]
    require_new(output, what="exporting")
    opened = as_run(run)
    if reason := target.refusal(opened):
        others = [candidate.name for candidate in TARGETS.values() if candidate.refusal(opened) is None]
        raise RecipeError(
            f"no export to {name}: {reason}",
            where="--to",
            fix=f"this run can be written as: {', '.join(others) or 'nothing'}",
        )
    return {"target": name, "output": str(output), **target.write(opened, output, reporter)}
