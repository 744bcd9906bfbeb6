"""Runs that are interrupted at a step of their last stage, as by Ctrl-C."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from lockadapt.console import Reporter
from lockadapt.recipe.schema import Recipe
from lockadapt.training import stage as stage_module
from lockadapt.training.loop import train

QUIET = Reporter(quiet=True)


class Interruption(TrainerCallback):
    """Ends training like Ctrl-C, at a step of a stage."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def interrupted(recipe: Recipe, folder: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains until a step of the last stage."""
    make = stage_module.stage_trainer

    def with_interruption(session: Any, stage: Any, folder: Path) -> Any:
        trainer = make(session, stage, folder)
        if not stage.name.startswith("first"):
            trainer.add_callback(Interruption(step))
        return trainer

    with monkeypatch.context() as patch:
        patch.setattr(stage_module, "stage_trainer", with_interruption)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, folder, QUIET)
