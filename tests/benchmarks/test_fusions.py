"""The benchmark of fusions: its table says what was measured or why not, and photographs are captioned with and without sight."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import fusions


def test_a_row_is_numbers_or_a_reason() -> None:
    row = {"fusion": "mlp", "tower": "T", "steps": 3, "cider": 0.12345, "accuracy": None}
    refused = {"fusion": "tiles", "class": None, "reason": "too large"}
    lines = fusions.table([row, refused], ("fusion", "steps", "cider", "image_tokens")).splitlines()
    assert lines[0] == "| fusion | steps | cider | image tokens |"
    assert lines[2:] == ["| mlp | 3 | 0.1235 | – |", "", "- `tiles`: too large"]


@pytest.mark.slow
@pytest.mark.real
def test_photographs(real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusions, "REAL", real)
    monkeypatch.setattr(fusions, "WARM_UP", 2)
    model = {"llm": str(real / "llm" / "tinystories-656k"), "tower": str(fusions.ASSETS / "tower")}
    job = {"model": model, "objectives": fusions.photographs(), "seconds": 0, "side": 64}
    scores = fusions.worker(job, tmp_path)
    assert scores.keys() >= set(fusions.CAPTION_COLUMNS) - {"fusion", "tower"}
    assert (scores["steps"], scores["image_tokens"]) == (2, 16)
    assert scores["cider"] >= 0.0
    assert scores["validation_loss"] > 0.0
