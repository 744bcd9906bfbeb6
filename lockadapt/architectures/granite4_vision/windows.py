"""The windowed Q-Former of Granite 4 Vision: how many queries there are, and how they start."""

from __future__ import annotations

from math import gcd, isqrt
from typing import Any

import torch
from torch import nn

from lockadapt.architectures.assembly import Fusion
from lockadapt.architectures.projectors import normal_
from lockadapt.errors import AssemblyError
from lockadapt.models.towers import TowerFacts

WINDOW = 8
"""Patches a side of a window at most, if the grid can be cut so."""

USUAL_SIDE = 6
"""Queries a side of a square where nobody asks for a number, and at most half as many as patches."""

LAYERS = 1
"""Of a Q-Former, as in IBM's checkpoints. The class builds five of them."""


@torch.no_grad()
def initialise(projector: Any, generator: torch.Generator) -> None:
    """Linear layers from N(0, 1 / inputs), norms that only normalise, queries and positions N(0, 1 / width).

    On the meta device, which has no values, nothing happens.
    """
    if projector.query.is_meta:
        return
    for module in projector.modules():
        if isinstance(module, nn.Linear):
            normal_(module, generator)
        elif isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
            module.bias.zero_()
    for drawn in (projector.query, projector.image_positions):
        drawn.copy_(torch.randn(drawn.shape, generator=generator) / drawn.shape[-1] ** 0.5)


WINDOWS = Fusion(
    "qformer",
    "",
    initialise,
    first="",  # all that reads the image lies behind a norm: see `calibrate`
    scaled="",
    depth=LAYERS,
    tokenwise=False,
    queries=0,  # as many as fit the tower's grid: see `queries`
    max_tiles=1,
)
"""Queries that learn read windows of patches; each starts from what it reads on average."""


def queries(vision: TowerFacts, asked: int, where: str) -> int:
    """See `Assembly.queries`: so many a square, in rows and columns."""
    side = vision.image_size // vision.patch_size
    if not asked:
        return int(max(1, min(USUAL_SIDE, side // 2)) ** 2)
    count = isqrt(asked)
    if count * count != asked or count > side:
        fitting = f"{count**2} or {(count + 1) ** 2}" if count < side else str(side * side)
        raise AssemblyError(
            f"Granite4VisionForConditionalGeneration puts queries into as many rows as columns of "
            f"{side} x {side} patches, which {asked} of them cannot be",
            where=where,
            fix=f"set model.queries={fitting}",
        )
    return asked


def downsample_rate(side: int, count: int) -> str:
    """`queries a side / patches a side` of a window, for so many queries a side of a grid of patches."""
    smallest = side // gcd(side, count)
    window = max(
        (size for size in range(smallest, WINDOW + 1, smallest) if side % size == 0), default=smallest
    )
    return f"{window * count // side}/{window}"
