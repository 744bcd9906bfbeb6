"""Recipes of tiny models whose plans are compared with the models themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lockadapt.building.experiment import build_experiment
from lockadapt.building.model import assemble_model
from lockadapt.console import Reporter
from lockadapt.models.sources import resolve_dtype
from lockadapt.recipe.read import load_recipe
from lockadapt.recipe.schema import Recipe
from lockadapt.training.rows import encode_rows, image_policy, load_samples
from lockadapt.tuning.adapters import attach_lora, lora_config
from lockadapt.tuning.quantize import load_quantized
from tests.support.runs import values
from tests.support.tiny import tiny_llm, tiny_tower

QUIET = Reporter(quiet=True)


def small(folder: Path, llm: str, tower: str, *overrides: str) -> Recipe:
    """A recipe for a tiny LLM and a tiny tower of these kinds, without calibration."""
    for kind, make in ((llm, tiny_llm), (tower, tiny_tower)):
        if not (folder / kind).exists():
            make(kind, folder / kind)
    recipe = values(folder, folder)
    recipe["model"].update({"llm": str(folder / llm), "tower": str(folder / tower), "calibration_images": 0})
    return load_recipe(None, overrides, recipe).recipe


def real_model(recipe: Recipe, folder: Path) -> tuple[Any, Any]:
    """The recipe's model with its weights, as a session builds it, less the proof in a fresh process."""
    experiment = build_experiment(recipe)
    built = assemble_model(experiment, folder, [], prove=False)
    model, _ = load_quantized(folder, recipe.model.quantization, resolve_dtype(recipe.model.dtype))
    if experiment.lora is not None:
        model = attach_lora(model, lora_config(model, experiment.lora))
    samples = load_samples(experiment, QUIET)
    return model, encode_rows(experiment, model, built.processor, samples, image_policy(experiment, QUIET))
