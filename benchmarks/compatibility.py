"""Runs the zoo through check, three training steps, merge, verify and adapter export; writes the table.

    python benchmarks/compatibility.py [--json] [--only NAME] [--markdown docs/compatibility.md]
    python benchmarks/compatibility.py --bridges [--only NAME] [--rows FILE] [--markdown docs/bridges.md]

With --bridges: LLM families x towers x fusions (`benchmarks/bridges.py`); --only names any of these. Rows are
kept in FILE (JSON lines) as they are measured, and those that it holds are not measured again.

Models are tiny and random. Proofs run in forks of one process that has imported Transformers, not lockadapt.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import tests.support.torchvision_operators  # noqa: F401  # before Transformers
from benchmarks.bridges import bridges_markdown, kept_rows, measured_cells, report
from lockadapt.console import Reporter
from lockadapt.errors import LockadaptError
from lockadapt.exports.export import export_run
from lockadapt.exports.merge import merge_run
from lockadapt.exports.verify import verify_folder
from lockadapt.models import proof
from lockadapt.planning.admission import check_vlm
from lockadapt.recipe.read import load_recipe
from lockadapt.runs.run import open_run
from lockadapt.training.loop import train
from tests.support.runs import values
from tests.support.warm import Warm
from tests.support.zoo import ENTRIES, Entry

QUIET = Reporter(quiet=True)
EMPTY: dict[str, Any] = {
    **dict.fromkeys(
        ("built", "checked", "labels_ok", "image_sensitive", "trained", "locked", "merged"), False
    ),
    **dict.fromkeys(("cache", "packing", "tail", "nf4_share", "max_abs_logit_diff"), None),
    **{"missing_keys": [], "unexpected_keys": [], "adapter_export": False, "reason": None},
}
COLUMNS = ("class", "trained", "locked", "merged", "adapter_export", "tail", "packing", "cache", "reason")


def measure(entry: Entry) -> dict[str, Any]:
    """One row of the table; where something fails, what was measured before it, and the reason."""
    row = {"class": entry.architecture, "name": entry.name, "model_type": entry.model_type, **EMPTY}
    if missing := entry.missing():
        return {**row, "reason": f"its processor needs {' and '.join(missing)}"}
    with tempfile.TemporaryDirectory(prefix="lockadapt-") as scratch:
        try:
            _measure(entry, Path(scratch), row)
        except LockadaptError as error:
            row["reason"] = error.message
        except Exception as error:
            row["reason"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return row


def _measure(entry: Entry, scratch: Path, row: dict[str, Any]) -> None:
    entry.write(scratch / "vlm")
    row["built"] = True
    findings = {finding["probe"]: finding for finding in check_vlm(str(scratch / "vlm"), QUIET)["findings"]}
    row.update(checked=True, labels_ok=findings["labels"]["result"] == "ok", tail=findings["tail"]["result"])
    row.update(
        image_sensitive=findings["images"]["result"] == "ok", nf4_share=float(findings["nf4"]["result"])
    )
    row.update({name: _said(findings[name]) for name in ("cache", "packing")})
    recipe = values(scratch, scratch)
    recipe["model"] = {"vlm": str(scratch / "vlm"), "dtype": "float32"}
    recipe["data"] = {"packing": "shared" if row["packing"] == "exact" else "none"}
    recipe["training"] = {"steps": 3, "batch_size": 4, "learning_rate": 1e-2, "projector_learning_rate": 1e-2}
    train(load_recipe(None, (), recipe).recipe, scratch / "run", QUIET)
    row.update(trained=True, locked=open_run(scratch / "run").record.locked)
    made = merge_run(scratch / "run", scratch / "merged", QUIET)
    verify_folder(scratch / "merged", scratch / "run", QUIET)
    row.update({name: made[name] for name in ("max_abs_logit_diff", "missing_keys", "unexpected_keys")})
    row["merged"] = True
    export_run(scratch / "run", "adapter", scratch / "adapter", QUIET)
    row["adapter_export"] = True


def _said(finding: dict[str, str]) -> str:
    # What is exact is exact; what is off says why.
    shown = finding["detail"] and finding["result"] != "exact"
    return finding["result"] + (f": {finding['detail']}" if shown else "")


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table of Markdown."""
    words = {"True": "yes", "False": "no", "None": "–"}
    cells = [[words.get(str(row[name]), str(row[name])) for name in COLUMNS] for row in rows]
    lines = ["| " + " | ".join(line) + " |" for line in [COLUMNS, ["---"] * len(COLUMNS), *cells]]
    good = sum(row["merged"] for row in rows)
    summary = f"{good} of {len(rows)} train, merge and verify."
    head = f"# Compatibility\n\nMeasured by `make compatibility` on tiny random models: {summary}\n\n"
    return head + "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", action="append")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--bridges", action="store_true")
    parser.add_argument("--rows", type=Path, help="with --bridges: where rows are kept as they are measured")
    asked = parser.parse_args()
    warm = Warm()
    proof.run_python = warm
    rows: list[dict[str, Any]] = []
    table = bridges_markdown if asked.bridges else markdown
    if asked.bridges:
        kept = kept_rows(asked.rows)
        for row in measured_cells(asked.only or (), kept):
            rows.append(row)
            if row not in kept:
                report(row, asked.rows)
    for entry in () if asked.bridges else ENTRIES:
        if not asked.only or entry.name in asked.only:
            rows.append(measure(entry))
            print(entry.name, rows[-1]["reason"] or "ok", file=sys.stderr, flush=True)
    warm.close()
    if asked.markdown:
        asked.markdown.write_text(table(rows), encoding="utf-8")
    print(json.dumps({"rows": rows}) if asked.json else table(rows))


if __name__ == "__main__":
    main()
