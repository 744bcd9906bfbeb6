"""A change finer than the steps of a folder's dtype is rounded away: said, and not taken for an unmerged folder."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lockadapt.console import Reporter
from lockadapt.exports.merge import merge_run
from lockadapt.exports.verify import verify_folder
from lockadapt.recipe.read import load_recipe
from lockadapt.training.loop import train
from tests.support.runs import values

FINE = ("training.learning_rate=1e-7", "training.projector_learning_rate=1e-2")


@pytest.mark.slow
@pytest.mark.cold
@pytest.mark.parametrize(("dtype", "lost"), [("bfloat16", 0.9), ("float32", 0.0)])
def test_what_rounding_takes_is_said(
    dtype: str, lost: float, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = (f"model.dtype={dtype}", *FINE)
    train(load_recipe(None, changes, values(tiny, tmp_path)).recipe, tmp_path / "run", Reporter(quiet=True))
    proof = merge_run(tmp_path / "run", tmp_path / "merged", Reporter())
    assert math.isclose(proof["lost_change"], lost, abs_tol=0.1)
    again = verify_folder(tmp_path / "merged", tmp_path / "run", Reporter())
    assert again["lost_change"] == proof["lost_change"]
    assert capsys.readouterr().err.count("took or blurred") == (2 if lost else 0)
