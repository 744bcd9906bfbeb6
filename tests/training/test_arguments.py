"""Keys of a recipe become arguments of the trainer."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockadapt.errors import RecipeError, SetupError
from lockadapt.training import arguments as training_arguments
from tests.support.recipe_keys import ARGUMENTS, arguments, built, has_its_effect


@pytest.mark.parametrize("key", ARGUMENTS)
def test_key_has_its_effect(key: str, tmp_path: Path) -> None:
    has_its_effect(ARGUMENTS, key, tmp_path)


def test_report_to_reaches_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = built(tmp_path, "training.report_to=[trackio, wandb]")
    monkeypatch.setattr(
        training_arguments, "find_spec", lambda package: None if package == "wandb" else object()
    )
    with pytest.raises(SetupError, match="wandb is not installed"):
        arguments(own)
    monkeypatch.setattr(training_arguments, "find_spec", lambda package: object())
    assert arguments(own).report_to == ["trackio", "wandb"]
    assert arguments(built(tmp_path)).report_to == []


def test_best_cannot_be_kept_between_validations(tmp_path: Path) -> None:
    own = built(tmp_path, "training.save_every=3", "training.validate_every=2")
    with pytest.raises(RecipeError, match="no multiple of validate_every"):
        arguments(own)
