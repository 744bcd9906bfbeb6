"""LLM families x towers x fusions, tiny and random: assembled, trained, merged and proved, or why not.

Run by `python benchmarks/compatibility.py --bridges`. Every cell asks `lockadapt.architectures.suggest` which
class holds the pair; one that is held is trained for three steps with packing and a feature cache and merged,
and the merged folder is loaded in a process that has not imported lockadapt.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lockadapt.architectures.suggest import Holding, holdings
from lockadapt.console import Reporter
from lockadapt.errors import LockadaptError, RecipeError
from lockadapt.exports.merge import merge_run
from lockadapt.recipe.read import load_recipe
from lockadapt.runs.run import open_run
from lockadapt.training.loop import train
from tests.support.runs import values
from tests.support.tiny import LLMS, ODD_LLMS, TOWERS, tiny_llm, tiny_tower

QUIET = Reporter(quiet=True)
LLM_NAMES = (*LLMS, *ODD_LLMS)
TOWER_NAMES = tuple(name for name in TOWERS if name not in ("clip", "siglip", "vit-classifier"))
"""Without those that only hold another of them."""

EMPTY: dict[str, Any] = {
    **dict.fromkeys(("assembled", "trained", "merged"), False),
    **dict.fromkeys(("class", "max_abs_logit_diff", "packing", "cache", "reason"), None),
    **{"missing_keys": [], "unexpected_keys": []},
}


def measured_cells(only: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The table's rows, as they are measured.

    Args:
        only: names of LLMs, towers and fusions; each kind that none of them belongs to is taken whole.

    Yields:
        `{"llm", "tower", "fusion", "class", "assembled", "trained", "merged", "max_abs_logit_diff",
        "missing_keys", "unexpected_keys", "packing", "cache", "reason"}`.
    """
    with tempfile.TemporaryDirectory(prefix="lockadapt-") as scratch:
        sources = Path(scratch)
        for llm in _chosen(LLM_NAMES, only):
            tiny_llm(llm, sources / llm)
            for tower in _chosen(TOWER_NAMES, only):
                if not (sources / tower).exists():
                    tiny_tower(tower, sources / tower)
                entries = holdings(sources / llm, sources / tower)
                names = _chosen([entry.fusion for entry in entries], only)
                for entry in entries:
                    if entry.fusion in names:
                        yield {"llm": llm, "tower": tower, **_cell(sources, llm, tower, entry)}


def _chosen(names: Sequence[str], only: Sequence[str]) -> list[str]:
    return [name for name in names if name in only] or list(names)


def _cell(sources: Path, llm: str, tower: str, entry: Holding) -> dict[str, Any]:
    row = {"fusion": entry.fusion, **EMPTY, "class": entry.model_class, "reason": entry.reason}
    if entry.model_class is None:
        return row
    with tempfile.TemporaryDirectory(prefix="lockadapt-") as scratch:
        try:
            _run(sources, (llm, tower), Path(scratch), row)
        except LockadaptError as error:
            row["reason"] = error.message
        except Exception as error:
            row["reason"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return row


def _run(sources: Path, pair: tuple[str, str], scratch: Path, row: dict[str, Any]) -> None:
    recipe = values(scratch, scratch)
    llm, tower = pair
    recipe["model"] = {
        **{"llm": str(sources / llm), "tower": str(sources / tower)},
        **{"fusion": row["fusion"], "dtype": "float32"},
    }
    recipe["training"] = {"steps": 3, "batch_size": 4, "learning_rate": 1e-2, "projector_learning_rate": 1e-2}
    recipe["data"] = {"features": "memory"}
    row["cache"] = "memory"
    try:
        train(load_recipe(None, (), recipe).recipe, scratch / "run", QUIET)
    except (LockadaptError, RecipeError) as error:
        if error.where != "data.features":
            row["assembled"] = (scratch / "run" / "base").exists()
            raise
        row["cache"] = f"none: {error.message}"
        recipe["data"] = {"features": "none"}
        train(load_recipe(None, (), recipe).recipe, scratch / "again", QUIET)
    run = scratch / "again" if (scratch / "again").exists() else scratch / "run"
    packing = open_run(run).record.stages[0].packing
    why = "" if packing is None else str(getattr(packing, "why", "") or packing)
    row.update(assembled=True, trained=True, packing=why)
    proof = merge_run(run, scratch / "merged", QUIET)
    row.update({name: proof[name] for name in ("max_abs_logit_diff", "missing_keys", "unexpected_keys")})
    row["merged"] = True


def bridges_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """One line an LLM and fusion: the towers that it was merged with, and the reasons of the others."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["llm"], row["fusion"]), []).append(row)
    columns = ("LLM", "fusion", "class", "towers", "largest difference", "not")
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for (llm, fusion), cells in groups.items():
        good = [row for row in cells if row["merged"]]
        classes = ", ".join(dict.fromkeys(row["class"] for row in good)) or "–"
        reasons: dict[str, list[str]] = {}
        for row in cells:
            if not row["merged"]:
                reasons.setdefault(row["reason"] or "", []).append(row["tower"])
        whole = len(reasons) == 1 and not good
        refused = "; ".join(
            reason if whole else f"{', '.join(names)}: {reason}" for reason, names in reasons.items()
        )
        worst = max((row["max_abs_logit_diff"] for row in good), default=None)
        towers = ", ".join(row["tower"] for row in good) or "–"
        number = "–" if worst is None else f"{worst:.1g}"
        lines.append(f"| {llm} | {fusion} | {classes} | {towers} | {number} | {refused or '–'} |")
    merged, held = sum(row["merged"] for row in rows), sum(row["class"] is not None for row in rows)
    head = (
        f"{merged} of {held} cells that a class holds are trained, merged and proved; {len(rows)} were asked."
    )
    return head + "\n\n" + "\n".join(lines) + "\n"


def report(row: dict[str, Any]) -> None:
    """Says on stderr how a cell went."""
    name = f"{row['llm']} x {row['tower']}, {row['fusion']}"
    print(name, "ok" if row["merged"] else row["reason"], file=sys.stderr, flush=True)
