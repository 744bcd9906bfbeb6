"""What a run folder was left with: whether a run may start or go on there, and what is taken back before it does."""

from __future__ import annotations

import json
from pathlib import Path

from lockadapt.errors import RecipeError
from lockadapt.recipe.schema import Recipe
from lockadapt.runs import run_folder


def open_folder(recipe: Recipe, folder: Path, resume: bool) -> Path:
    """Make the run folder, or check that the one to resume belongs to this recipe.

    Raises:
        RecipeError: it is not empty, or belongs to another recipe.
    """
    same = recipe.model_copy(update={"output": None})
    if resume:
        before = run_folder.read_recipe(folder).model_copy(update={"output": None})
        if before != same:
            raise RecipeError(
                "differs from the recipe of the run", where=str(folder), fix="resume with the same recipe"
            )
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError(
            "exists and is not empty", where=f"--output {folder}", fix="name a new folder, or add --resume"
        )
    folder.mkdir(parents=True, exist_ok=True)
    run_folder.write_recipe(folder, same)
    return folder


def forget_after(metrics: Path, stage: str, last: Path | None) -> None:
    """Drop the metric lines of steps that will be taken again: those after the checkpoint `last`, or all of a stage."""
    if not metrics.is_file():
        return
    step = int(last.name.removeprefix("checkpoint-")) if last else 0
    lines = [json.loads(line) for line in metrics.read_text().splitlines() if line.strip()]
    kept = [line for line in lines if line["stage"] != stage or line["step"] <= step]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in kept))
