"""What the images of each objective become before a batch is made: tower outputs, kept or not, or codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lockadapt.architectures import layout_of
from lockadapt.architectures.base import unwrap_model
from lockadapt.data.encode import Encoded
from lockadapt.data.pixels import ImageInputs, PixelInputs
from lockadapt.errors import AssemblyError
from lockadapt.features.image_tokens import CodeInputs, code_inputs
from lockadapt.features.on_disk import FeatureSettings
from lockadapt.features.policy import Note, Progress, image_inputs, silent
from lockadapt.objectives import Objective
from lockadapt.objectives.base import Frozen
from lockadapt.training.rows import distinct_images

CODES: tuple[Frozen, ...] = ("codes", "crops")
"""What objectives that draw have of an image."""


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
    """Image inputs by objective; those that look at images through the tower share one, as do those that draw.

    Args:
        rows: training and validation rows by objective.
        max_pixels, settings, pays, blind, note, progress: as `lockadapt.features.policy.image_inputs` takes them.

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
    inputs = dict.fromkeys(objectives, shared)
    for kept in CODES:
        drawn = [name for name, objective in objectives.items() if objective.frozen == kept]
        if not drawn:
            continue
        folder = settings.cache.expanduser() if settings.choice == "disk" else None
        codes = codes_of(model, processor, max_pixels, folder, crops=kept == "crops")
        images = distinct_images([row for name in drawn for row in rows.get(name, ())])
        count = codes.fill(images.values(), progress)
        note(f"images: codes of {len(images):,} images kept ({count:,} computed)")
        inputs.update(dict.fromkeys(drawn, codes))
    return inputs


def codes_of(
    model: nn.Module, processor: Any, max_pixels: int, folder: Path | None = None, *, crops: bool = False
) -> CodeInputs:
    """Codes from the image tokenizer inside a stock model, kept in memory and in a folder; of ten crops too, if asked.

    Raises:
        AssemblyError: the model has no image tokenizer.
    """
    base = unwrap_model(model)
    if not layout_of(base).image_tokenizer:
        raise AssemblyError(
            f"{type(base).__name__} has no image tokenizer",
            fix="give model.image_tokenizer, or start from a Janus checkpoint",
        )
    return code_inputs(base.model.vqmodel, processor.image_processor, max_pixels, folder=folder, crops=crops)
