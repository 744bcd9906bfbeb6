"""Runs a frozen tower on pixel values, once an image; the outputs come back through the feature door."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import nn

from lockadapt.architectures import tower_of
from lockadapt.architectures.features import kept_outputs
from lockadapt.architectures.kept import ImageRecord

Kept = torch.Tensor | Sequence[ImageRecord]
"""(images, tokens, channels), or a record an image."""
Tower = Callable[[Mapping[str, Any]], Kept]
"""The image part of a batch -> what is kept of its images, without gradient."""

GPU_BATCH, CPU_BATCH = 64, 8
"""Images that the tower sees at a time.

On a CPU small batches stay in its caches and need no fresh memory from the
system: MobileNetV2 at 128 pixels took 1.0 to 1.6 s for 128 images in eights, 4.0 s in batches of 64 (one
thread)."""


def tower_outputs(
    model: nn.Module, images: Mapping[str, Any], projected: bool = False, ragged: bool = False
) -> Kept:
    """Runs what is frozen of a model on the image part of a batch, which may lie on any device.

    Args:
        model: a Transformers model; its tower is put into evaluation mode.
        images: as image inputs give them; floating-point ones are cast to the tower's dtype.
        projected: see `kept_outputs`.
        ragged: see `kept_outputs`.

    Returns:
        Projector inputs (images, tokens, channels) without gradient; of a dual encoder, what its projection
        gets, (images, 1, channels); where images have different numbers of tokens, a record for each.
    """
    tower = tower_of(model)
    tower.eval()
    reference = next(tower.parameters())
    moved = {
        name: value.to(reference.device, reference.dtype if value.is_floating_point() else value.dtype)
        for name, value in images.items()
        if isinstance(value, torch.Tensor)
    }
    return kept_outputs(model, moved, projected, ragged)


def on_cpu(kept: Kept) -> Kept:
    """What is kept of images, on the CPU and without graph: the model may not be frozen when it is filled."""
    if isinstance(kept, torch.Tensor):
        return kept.detach().cpu()
    return [
        replace(record, levels={name: level.detach().cpu() for name, level in record.levels.items()})
        for record in kept
    ]


def tower_batch(model: nn.Module) -> int:
    """How many images the tower of a model should see at a time."""
    device = next(tower_of(model).parameters()).device
    return CPU_BATCH if device.type == "cpu" else GPU_BATCH


def image_side(processor: Any) -> int:
    """Side of the square that the tower sees, in pixels."""
    values = processor.image_processor(images=[Image.new("RGB", (8, 8))], return_tensors="pt")["pixel_values"]
    return int(values.shape[-1])
