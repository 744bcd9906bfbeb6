"""Scores a run or a stock folder on the test rows of a recipe, every objective by its own metrics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lockadapt.building.from_recipe import feature_settings, objectives_of, samples_of
from lockadapt.console import Reporter
from lockadapt.data.encode import Encoder
from lockadapt.data.pixels import FeatureInputs, ImageInputs, PixelInputs, mean_image
from lockadapt.data.sample import Sample
from lockadapt.data.scan import scan_images
from lockadapt.errors import DataError, RecipeError
from lockadapt.evaluation.context import EvaluationBench
from lockadapt.evaluation.target import Target, make_ready, open_target
from lockadapt.features.inputs import CODES, codes_of
from lockadapt.features.policy import disk_features, image_side, tower_batch, tower_outputs
from lockadapt.files import write_json, write_text
from lockadapt.objectives import Objective
from lockadapt.recipe.read import load_recipe
from lockadapt.recipe.schema import Recipe
from lockadapt.runs.card import write_card
from lockadapt.training.rows import context_length

SCORES = "evaluation.json"


def evaluate_folder(
    folder: Path,
    recipe_file: Path | None,
    overrides: Sequence[str],
    blind: bool,
    predictions: Path | None,
    reporter: Reporter,
) -> dict[str, Any]:
    """Scores by objective; a run's are kept in its `evaluation.json` and model card as well.

    Raises:
        RecipeError: a stock folder that says nothing of its recipe, and none is given.
        DataError: no objective has test rows.
    """
    target = open_target(folder)
    recipe = _recipe(target, recipe_file, overrides)
    # A model that never saw an image is judged as it was trained.
    blind = blind or recipe.blind
    scores, rows = evaluate(target, recipe, blind, reporter)
    if predictions is not None:
        write_text(predictions, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    if target.run is not None and recipe_file is None:
        kept = target.run / SCORES
        before = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
        before["blind" if blind else "seeing"] = scores
        write_json(kept, before)
        write_card(target.run)
    return scores


def evaluate(
    target: Target, recipe: Recipe, blind: bool, reporter: Reporter
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Scores by objective, and every prediction as a row (objective, where, question, answer, truth, images).

    Raises:
        DataError: no objective has test rows.
        RecipeError: as `make_ready`.
    """
    scores: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    found = samples_of(recipe, "test")
    if not found:
        raise DataError("no objective has test rows", where="objectives", fix="add `test` to an objective")
    objectives = objectives_of(recipe)
    for name, samples in found.items():
        samples = samples[: recipe.evaluation.samples]
        scan = scan_images(
            samples, recipe.data.max_pixels, recipe.data.on_bad_image, recipe.data.max_bad_fraction
        )
        samples = scan.good
        objective = objectives[name]
        make_ready(target, objective)
        bench = EvaluationBench(
            target.model,
            Encoder(target.processor, recipe.data.max_length or context_length(target.model)),
            _images(target, objective, recipe, samples, blind, reporter),
            recipe.evaluation.batch_size,
            reporter.counted(f"{name} test"),
            recipe.evaluation.method,
            None if recipe.data.packing == "none" else recipe.data.row_tokens,
            lambda name=name: samples_of(recipe, "train")[name],  # type: ignore[misc]
            recipe.data.max_pixels,
        )
        label = objective.scored_as if name == objective.kind else name
        scores[label], predictions = objective.evaluate(bench, samples)
        rows += [{"objective": name, **row} for row in predictions]
    return scores, rows


def _images(
    target: Target,
    objective: Objective,
    recipe: Recipe,
    samples: Sequence[Sample],
    blind: bool,
    reporter: Reporter,
) -> ImageInputs:
    images = {image.key: image for sample in samples for image in sample.images}
    if objective.frozen in CODES:
        codes = codes_of(target.model, target.processor, recipe.data.max_pixels)
        codes.fill(images.values(), reporter.counted("tokenising images"))
        return codes
    mean = None
    if blind and images:
        side = image_side(target.processor)
        mean = target.mean or mean_image(images.values(), recipe.data.max_pixels, side)
    pixels = PixelInputs(target.processor.image_processor, recipe.data.max_pixels, mean)
    inputs: Any = pixels
    uses = sum(len(sample.images) for sample in samples)
    if recipe.data.features == "disk" and images:
        settings = feature_settings(recipe.data)
        inputs = disk_features(target.model, target.processor, pixels, settings, reporter.note)
        inputs.fill(images.values(), reporter.counted("running the frozen tower"))
    elif recipe.data.features != "none" and (blind or uses > len(images)):
        from lockadapt.architectures.base import unwrap_model

        base = unwrap_model(target.model)
        inputs = FeatureInputs(pixels, lambda values: tower_outputs(base, values), tower_batch(base))
        inputs.fill(images.values(), reporter.counted("running the frozen tower"))
    return inputs


def _recipe(target: Target, recipe_file: Path | None, overrides: Sequence[str]) -> Recipe:
    if recipe_file is not None:
        return load_recipe(recipe_file, overrides).recipe
    if target.recipe is None:
        raise RecipeError(
            "the folder does not say which recipe it was trained with",
            where="--recipe",
            fix="add --recipe FILE",
        )
    return load_recipe(None, overrides, target.recipe.model_dump(mode="json")).recipe
