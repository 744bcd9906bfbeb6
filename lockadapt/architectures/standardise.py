"""Per-channel mean and deviation of a tower's outputs, folded into the linear layers that read them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lockadapt.errors import DataError

SMALLEST_SHARE = 1e-2
"""Channels that vary by less than this share of the median channel are treated as if they varied by that
much."""


@torch.no_grad()
def channel_statistics(batches: Iterable[Tensor]) -> tuple[int, Tensor, Tensor]:
    """Mean and deviation of each channel over all images and tokens.

    Args:
        batches: (images, tokens, channels) each, or with more dimensions between.

    Returns:
        How many images there were; mean and deviation, float64 (channels,), near-zeros raised.

    Raises:
        DataError: no images, or features that are not finite.
    """
    images, count = 0, 0
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0
    shift: Tensor | None = None
    for batch in batches:
        if batch.shape[0] == 0:
            continue
        flat = batch.double().flatten(0, -2)
        # Sums of squares around a first guess of the mean lose no digits where the mean is far from zero.
        shift = flat.mean(dim=0) if shift is None else shift
        images, count = images + batch.shape[0], count + flat.shape[0]
        total, squares = total + (flat - shift).sum(dim=0), squares + (flat - shift).square().sum(dim=0)
    if shift is None or not isinstance(total, Tensor) or not isinstance(squares, Tensor):
        raise DataError("no image to calibrate the projector on", where="model.calibration_images")
    mean = shift + total / count
    deviation = (squares / count - (total / count).square()).clamp_min(0).sqrt()
    if not bool(torch.isfinite(mean).all() and torch.isfinite(deviation).all()):
        raise DataError("the tower's features are not finite", fix="try model.dtype=float32")
    return images, mean, _guarded(deviation)


@torch.no_grad()
def fold(layer: nn.Module, mean: Tensor, deviation: Tensor) -> None:
    """Lets a layer work on standardised inputs, by its weights; in place.

    With mean m and deviation s, `W (x - m) / s + b` is a layer with weight `W / s` and bias `b - (W / s) m`.
    A layer without a bias keeps the mean.

    Args:
        layer: a linear one, or one of GPT-2's, whose weight is transposed.
        mean: float64 (inputs,).
        deviation: the same.
    """
    given: Any = layer.weight
    transposed = not isinstance(layer, nn.Linear)
    weight = (given.T if transposed else given).double() / deviation
    if layer.bias is not None:
        bias: Any = layer.bias
        bias.copy_(bias.double() - weight @ mean)
    given.copy_(weight.T if transposed else weight)


def _guarded(deviation: Tensor) -> Tensor:
    """Deviations without near-zeros: a dead channel divided by its own would make a stray value explode."""
    alive = deviation[deviation > 0]
    floor = SMALLEST_SHARE * alive.median() if alive.numel() else torch.ones((), dtype=deviation.dtype)
    return torch.where(deviation > floor, deviation, floor.to(deviation).expand_as(deviation))
