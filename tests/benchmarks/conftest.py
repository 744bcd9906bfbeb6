"""The scripts in benchmarks/ import each other as neighbours, as they do when run."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, importable from."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return FOLDER
