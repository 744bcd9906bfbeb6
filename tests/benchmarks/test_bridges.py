"""The table of LLMs, towers and fusions: a cell that is held, one that is not, and their lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
    assert_table(held, refused)


def assert_table(held: dict[str, Any], refused: dict[str, Any]) -> None:
    text = bridges_markdown([held, refused])
    lines = text.splitlines()
    assert "\n1 of the 1 cells that assembling accepts are trained, merged and proved; 1 others\n" in text
    assert "Not measured: llama" in text
    assert any(line.startswith("| llama-tied | pixel-shuffle | AyaVision") for line in lines)
    assert any(
        line.startswith("| cohere | pixel-shuffle | –") and "clip-vision (1)" in line for line in lines
    )
    assert lines[-1].startswith("1. ")
    assert "logit scale" in lines[-1]


def test_the_table_numbers_its_reasons() -> None:
    cell = {**EMPTY, "tower": "clip-vision", "fusion": "pixel-shuffle"}
    good = {"assembled": True, "trained": True, "merged": True, "max_abs_logit_diff": 1e-7}
    held = {**cell, **good, "llm": "llama-tied", "class": "AyaVisionForConditionalGeneration"}
    assert_table(held, {**cell, "llm": "cohere", "reason": "it has a logit scale"})


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
