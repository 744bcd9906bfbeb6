"""The example of zero-shot classification, whole."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "zero_shot.py"


def test_classes_are_told_apart_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--output", str(tmp_path / "out")])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    scores = json.loads(capsys.readouterr().out)
    assert scores["accuracy"] > 0.5  # eight classes: one in eight is right by chance
