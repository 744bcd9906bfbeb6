"""The runs of tiny models that are damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

from lockadapt.console import Reporter
from lockadapt.recipe.read import load_recipe
from lockadapt.training.loop import train
from tests.support.runs import values
from tests.support.tiny import tiny_llm, tiny_tower


def finished_and_interrupted(folder: Path) -> tuple[Path, Path]:
    """Trains a run, and makes one of it that stopped a step before its end.

    Args:
        folder: an empty one.

    Returns:
        Both folders.
    """
    tiny_llm("llama", folder / "llama")
    tiny_tower("clip-vision", folder / "clip-vision")
    whole, stopped = folder / "whole", folder / "stopped"
    train(load_recipe(None, (), values(folder, folder)).recipe, whole, Reporter(quiet=True))
    shutil.copytree(whole, stopped)
    for done in ("checkpoints/train/finished", "checkpoints/train/checkpoint-5", "adapter", "processor"):
        shutil.rmtree(stopped / done)
    for done in ("run.json", "projector.safetensors", "README.md"):
        (stopped / done).unlink()
    return whole, stopped
