"""Runs a frozen tower on pixel values, once an image; the outputs come back through the feature door."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import nn

from lockadapt.architectures import tower_of
from lockadapt.architectures.features import projector_input

GPU_BATCH, CPU_BATCH = 64, 8
"""Images that the tower sees at a time.

On a CPU small batches stay in its caches and need no fresh memory from the
system: MobileNetV2 at 128 pixels took 1.0 to 1.6 s for 128 images in eights, 4.0 s in batches of 64 (one
thread)."""


def tower_outputs(model: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """Projector inputs (images, tokens, channels) for pixel values on any device, without gradient.

    Of a dual encoder, what its projection gets: (images, 1, channels).
    """
    tower = tower_of(model)
    tower.eval()
    reference = next(tower.parameters())
    values = pixel_values.to(reference.device, reference.dtype)
    return projector_input(model, values)


def tower_batch(model: nn.Module) -> int:
    """How many images the tower of a model should see at a time."""
    device = next(tower_of(model).parameters()).device
    return CPU_BATCH if device.type == "cpu" else GPU_BATCH


def image_side(processor: Any) -> int:
    """Side of the square that the tower sees, in pixels."""
    values = processor.image_processor(images=[Image.new("RGB", (8, 8))], return_tensors="pt")["pixel_values"]
    return int(values.shape[-1])
