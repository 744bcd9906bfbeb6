"""The table of LLMs, towers and fusions: a cell that is held, one that is not, and their lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.bridges import EMPTY, bridges_markdown, kept_rows, measured_cells, report
from lockadapt.models import proof
from tests.support.warm import Warm

KEYS = {
    *("llm", "tower", "fusion", "class", "assembled", "trained", "merged", "max_abs_logit_diff"),
    *("missing_keys", "unexpected_keys", "packing", "cache", "reason"),
}


@pytest.mark.slow
def test_a_cell_is_trained_merged_and_proved_or_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    warm = Warm()
    monkeypatch.setattr(proof, "run_python", warm)
    only = ("llama-tied", "cohere", "clip-vision", "pixel-shuffle")
    held, refused = measured_cells(only)
    warm.close()
    assert held.keys() == refused.keys() == KEYS
    assert held["merged"]
    assert held["class"] == "AyaVisionForConditionalGeneration"
    assert held["max_abs_logit_diff"] < 1e-4
    assert (held["cache"], held["reason"]) == ("memory", None)
    assert not refused["assembled"]
    assert "logit scale" in refused["reason"]
    lines = bridges_markdown([held, refused]).splitlines()
    assert lines[0].startswith("1 of 1 cells")
    assert lines[-2].startswith("| llama-tied | pixel-shuffle | AyaVision")
    assert "logit scale" in lines[-1]


def test_rows_are_kept_and_not_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = {"llm": "xlnet", "tower": "vit", "fusion": "mlp"}
    file = tmp_path / "rows.jsonl"
    assert kept_rows(file) == []
    report({**EMPTY, **cell, "reason": "measured before"}, file)
    report({**EMPTY, **cell, "fusion": "linear"}, file)
    with file.open("a") as lines:
        lines.write(json.dumps(cell)[:9])
    kept = kept_rows(file)
    assert [row["fusion"] for row in kept] == ["mlp", "linear"]
    rows = list(measured_cells(tuple(cell.values()), kept))
    assert [row["reason"] for row in rows] == ["measured before"]
