"""What a recipe is made into, once; what adapters are made from."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockadapt.building.experiment import read_experiment, recorded_experiment
from lockadapt.errors import DataError
from tests.support.recipe_keys import EXPERIMENT, built, has_its_effect
from tests.support.runs import recipe


@pytest.mark.parametrize("key", EXPERIMENT)
def test_key_has_its_effect(key: str, tmp_path: Path) -> None:
    has_its_effect(EXPERIMENT, key, tmp_path)


def test_things_are_made_once(tmp_path: Path) -> None:
    own = built(tmp_path)
    assert own.objectives is own.objectives
    assert own.features is own.features


def test_a_recorded_experiment_needs_its_files_only_when_they_are_asked_for(tmp_path: Path) -> None:
    values = recipe(tmp_path, "objectives.vqa.answers=gone.txt").model_dump(mode="json")
    own = recorded_experiment(values)
    assert own.data.max_row_tokens == 2048
    with pytest.raises(DataError, match="is no file"):
        _ = own.objectives


def test_a_trained_experiment_is_read_with_changes(tmp_path: Path) -> None:
    notes: list[str] = []
    changed = read_experiment(None, ["data.row_tokens=64"], built(tmp_path), notes.append)
    assert changed.data.max_row_tokens == 64
    assert notes == ["override 'data.row_tokens=64': data.row_tokens is now called data.max_row_tokens"]
    assert changed.recipe.objectives == built(tmp_path).recipe.objectives
