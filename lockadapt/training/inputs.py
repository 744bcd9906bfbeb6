"""What the images of each objective become before a batch is made: tower outputs, kept or not, or codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from lockadapt.data.codes import CodeInputs, code_inputs
from lockadapt.data.encode import Encoded
from lockadapt.data.features import FeatureSettings
from lockadapt.data.pixels import ImageInputs, PixelInputs
from lockadapt.errors import RecipeError
from lockadapt.models.parts import stock
from lockadapt.objectives import Objective
from lockadapt.training.features import Note, Progress, image_inputs, silent
from lockadapt.training.rows import distinct_images


def inputs_by_objective(
    model: nn.Module,
    processor: Any,
    objectives: Mapping[str, Objective],
    rows: Mapping[str, Sequence[Encoded]],
    max_pixels: int,
    settings: FeatureSettings,
    *,
    pays: bool = True,
    blind: bool = False,
    note: Note = silent,
    progress: Progress | None = None,
) -> dict[str, ImageInputs]:
    """Image inputs by objective; those that look at images through the tower share one.

    Args:
        rows: training and validation rows by objective.
        max_pixels, settings, pays, blind, note, progress: as `lockadapt.training.features.image_inputs` takes them.

    Raises:
        DiskError: features shall be kept on disk and do not fit.
        RecipeError: an objective draws, and the model does not.
    """
    seen = [row for name, items in rows.items() if objectives[name].frozen == "tower" for row in items]
    shared: ImageInputs = PixelInputs(processor.image_processor, max_pixels)
    if seen:
        shared = image_inputs(
            model, processor, seen, max_pixels, settings, pays=pays, blind=blind, note=note, progress=progress
        )
    found = dict.fromkeys(objectives, shared)
    drawn = [name for name, objective in objectives.items() if objective.frozen == "codes"]
    if drawn:
        codes = codes_of(model, processor, max_pixels, settings)
        images = distinct_images([row for name in drawn for row in rows.get(name, ())])
        count = codes.fill(images.values(), progress)
        note(f"images: codes of {len(images):,} images kept ({count:,} computed)")
        found.update(dict.fromkeys(drawn, codes))
    return found


def codes_of(model: nn.Module, processor: Any, max_pixels: int, settings: FeatureSettings) -> CodeInputs:
    """Where a Janus model's image codes come from: on disk as well where features are asked to be.

    Raises:
        RecipeError: the model has no image tokenizer.
    """
    inner = getattr(stock(model), "model", None)
    tokenizer = getattr(inner, "vqmodel", None)
    if tokenizer is None:
        raise RecipeError(
            f"{type(stock(model)).__name__} does not draw",
            where="model",
            fix="give model.image_tokenizer and a SigLIP tower, or start from a Janus checkpoint",
        )
    folder = settings.cache.expanduser() if settings.choice == "disk" else None
    return code_inputs(tokenizer, processor.image_processor, max_pixels, folder=folder)
