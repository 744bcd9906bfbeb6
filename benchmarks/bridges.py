"""LLM families x towers x fusions, tiny and random: assembled, trained, merged and proved, or why not.

Run by `python benchmarks/compatibility.py --bridges`. Every cell asks `lockadapt.architectures.suggest` which
class holds the pair; one that is held is trained for three steps with packing and a feature cache and merged,
and the merged folder is loaded in a process that has not imported lockadapt. Text encoders are also measured
in the dual encoder, by a contrastive run whose embeddings sentence-transformers computes again. Rows are kept
in a file as they are measured (`kept_rows`), so that a broken measurement goes on where it was.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lockadapt.architectures.choose import fusion_names
from lockadapt.architectures.dual_encoder import DUAL_ENCODER
from lockadapt.architectures.suggest import Holding, holdings
from lockadapt.console import Reporter
from lockadapt.errors import LockadaptError, RecipeError
from lockadapt.exports.export import export_run
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
WIDE = ("clip-wide", "siglip-wide")
"""Towers for the windows of a Q-Former, which are 64 channels wide; all else is measured with narrow ones."""
DUAL, DUAL_NAMES = "dual", ("bert", "xlnet")
"""What the dual encoder's column says, and whose text side it is measured with."""
KEY = ("llm", "tower", "fusion")
"""What tells a row from all others."""

EMPTY: dict[str, Any] = {
    **dict.fromkeys(("assembled", "trained", "merged"), False),
    **dict.fromkeys(("class", "max_abs_logit_diff", "packing", "cache", "reason"), None),
    **{"missing_keys": [], "unexpected_keys": []},
}


def kept_rows(file: Path | None) -> list[dict[str, Any]]:
    """The rows of an earlier measurement: JSON lines, the last of which may be broken off."""
    rows: list[dict[str, Any]] = []
    for line in file.read_text(encoding="utf-8").splitlines() if file and file.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def measured_cells(only: Sequence[str], kept: Sequence[dict[str, Any]] = ()) -> Iterator[dict[str, Any]]:
    """The table's rows, as they are measured.

    Args:
        only: names of LLMs, towers and fusions; each kind that none of them belongs to is taken whole.
        kept: rows that are taken as they are.

    Yields:
        `{"llm", "tower", "fusion", "class", "assembled", "trained", "merged", "max_abs_logit_diff",
        "missing_keys", "unexpected_keys", "packing", "cache", "reason"}`.
    """
    known: dict[tuple[str, ...], dict[str, Any]] = {tuple(row[name] for name in KEY): row for row in kept}
    with tempfile.TemporaryDirectory(prefix="lockadapt-") as scratch:
        sources = Path(scratch)
        for llm in _chosen(LLM_NAMES, only):
            for tower in _chosen(TOWER_NAMES, only):
                every = [*fusion_names(), *([DUAL] if llm in DUAL_NAMES else ())]
                names = _chosen(["qformer"] if tower in WIDE else every, only)
                asked = [name for name in names if (llm, tower, name) not in known]
                yield from (known[llm, tower, name] for name in names if name not in asked)
                for entry in _held(sources, llm, tower, asked) if asked else ():
                    if entry.fusion in asked:
                        yield {"llm": llm, "tower": tower, **_cell(sources, llm, tower, entry)}


def _held(sources: Path, llm: str, tower: str, asked: Sequence[str]) -> list[Holding]:
    """Which class holds a pair by each fusion, and by the dual encoder if that is asked."""
    for name, make in ((llm, tiny_llm), (tower, tiny_tower)):
        if not (sources / name).exists():
            make(name, sources / name)
    entries = [] if list(asked) == [DUAL] else holdings(sources / llm, sources / tower)
    return [*entries, Holding(DUAL, DUAL_ENCODER.model_class.__name__)] if DUAL in asked else entries


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
    recipe["model"] = {"llm": str(sources / llm), "tower": str(sources / tower), "dtype": "float32"}
    if row["fusion"] == DUAL:
        rows = dict(recipe["objectives"]["vqa"]["train"], columns={"caption": "question"})
        recipe["objectives"] = {"itc": {"train": rows, "test": rows, "dimension": 8, "pooling": "mean"}}
    else:
        recipe["model"]["fusion"] = row["fusion"]
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
    if row["fusion"] == DUAL:
        proof = export_run(run, "sentence-transformers", scratch / "merged", QUIET)
        row["max_abs_logit_diff"] = max(proof["text_difference"], proof["image_difference"])
    else:
        proof = merge_run(run, scratch / "merged", QUIET)
        row.update({name: proof[name] for name in ("max_abs_logit_diff", "missing_keys", "unexpected_keys")})
    row["merged"] = True


HEAD = """# LLMs, towers and fusions

Measured by `make bridges` on tiny random models: each cell that assembling accepts was proved, trained for
three steps with packing and kept features where the class takes them, merged, and the merged folder loaded in
a process that had not imported lockadapt; in the dual encoder, exported to sentence-transformers, which
computed the embeddings again. A refusal is what assembling says; numbers in brackets are the reasons below.
`clip-wide` and `siglip-wide` have 64 channels, as Granite 4 Vision needs: only `qformer` is tried with them.

{merged} of the {assembled} cells that assembling accepts are trained, merged and proved; {refused} others
were refused.
{rest}
"""


def bridges_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """One line an LLM and fusion: the towers that it was merged with, and why it was not with others."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["llm"], row["fusion"]), []).append(row)
    columns = ("LLM", "fusion", "class", "towers", "largest difference", "refused")
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    numbers: dict[str, int] = {}
    for (llm, fusion), cells in groups.items():
        good = [row for row in cells if row["merged"]]
        classes = ", ".join(dict.fromkeys(row["class"] for row in good)) or "–"
        reasons: dict[int, list[str]] = {}
        for row in cells:
            if not row["merged"]:
                index = numbers.setdefault(str(row["reason"]), len(numbers) + 1)
                reasons.setdefault(index, []).append(row["tower"])
        refused = "; ".join(f"{', '.join(names)} ({index})" for index, names in reasons.items()) or "–"
        worst = max((row["max_abs_logit_diff"] for row in good), default=None)
        towers = ", ".join(row["tower"] for row in good) or "–"
        number = "–" if worst is None else f"{worst:.1g}"
        lines.append(f"| {llm} | {fusion} | {classes} | {towers} | {number} | {refused} |")
    head = HEAD.format(
        merged=sum(row["merged"] for row in rows),
        assembled=sum(row["assembled"] for row in rows),
        refused=sum(not row["assembled"] for row in rows),
        rest=_not_measured(rows),
    )
    listed = [f"{index}. {reason}" for reason, index in numbers.items()]
    return "\n".join([head, *lines, "", "## Reasons", "", *listed]) + "\n"


def _not_measured(rows: Sequence[dict[str, Any]]) -> str:
    """Which LLMs lack towers, in a sentence; empty where the table is whole."""
    seen: dict[str, set[str]] = {}
    for row in rows:
        seen.setdefault(row["llm"], set()).add(row["tower"])
    plain = [name for name in TOWER_NAMES if name not in WIDE]
    absent: dict[str, list[str]] = {}
    for llm in LLM_NAMES:
        towers = [name for name in plain if name not in seen.get(llm, set())]
        if towers:
            absent.setdefault("all towers" if len(towers) == len(plain) else ", ".join(towers), []).append(
                llm
            )
    parts = [f"{', '.join(llms)} with {towers}" for towers, llms in absent.items()]
    return f"\nNot measured: {'; '.join(parts)}.\n" if parts else ""


def report(row: dict[str, Any], file: Path | None = None) -> None:
    """Says on stderr how a cell went, and keeps its row in a file."""
    name = f"{row['llm']} x {row['tower']}, {row['fusion']}"
    print(name, "ok" if row["merged"] else row["reason"], file=sys.stderr, flush=True)
    if file is not None:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
