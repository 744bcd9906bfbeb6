"""What the images of each objective become before a batch is made: tower outputs, kept or not, or codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from lockadapt.data.encode import Encoded
from lockadapt.data.features import FeatureSettings
from lockadapt.data.pixels import ImageInputs, PixelInputs
from lockadapt.objectives import Objective
from lockadapt.training.features import Note, Progress, image_inputs, silent


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
    """
    seen = [row for name, items in rows.items() if objectives[name].frozen == "tower" for row in items]
    shared: ImageInputs = PixelInputs(processor.image_processor, max_pixels)
    if seen:
        shared = image_inputs(
            model, processor, seen, max_pixels, settings, pays=pays, blind=blind, note=note, progress=progress
        )
    return dict.fromkeys(objectives, shared)
