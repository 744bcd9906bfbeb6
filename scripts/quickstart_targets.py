"""The training targets of the quickstart's tower: a patch's edge directions and colours."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

PATCH = 16  # pixels
CELL, BINS, CONTEXT = 4, 6, 32  # pixels, edge directions, pixels around a patch's middle
CELLS = CONTEXT // CELL
MARGIN = (CELLS - PATCH // CELL) // 2  # cells
COLOUR_LEVELS = (-1.0, 0.0, 1.0)
EDGES, DIRECTIONS, COLOURS = CELLS * CELLS * BINS, 2 * BINS, 2 * len(COLOUR_LEVELS) ** 3


def wide() -> int:
    """How many numbers a patch has to predict."""
    return EDGES + DIRECTIONS + COLOURS


def targets(pixels: Tensor) -> Tensor:
    """Turn pixels (n, 3, side, side) in [-1, 1] into (n, patches, wide()): edges near and far, colours."""
    strength, near = _directions(pixels)
    sums = F.avg_pool2d(strength[:, None] * near, CELL)
    energy = F.avg_pool2d(F.pad((sums**2).sum(1, keepdim=True), (2, 2, 2, 2)), 5, stride=1)
    edges = sums / (energy + 2e-3).sqrt()
    windows = F.unfold(F.pad(edges, (MARGIN,) * 4), CELLS, stride=PATCH // CELL)
    return torch.cat([windows, _shares(sums), _colours(pixels)], 1).transpose(1, 2)


def weighted_error(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Squared errors of the three kinds of targets, weighted so that none is lost beside the others."""
    error = (predicted - wanted) ** 2
    edges, directions, colours = error.split((EDGES, DIRECTIONS, COLOURS), -1)
    return 2 * edges.mean() + directions.mean() + 12 * colours.mean()


def _directions(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return each pixel's edge strength (n, side, side) and direction weights (n, bins, side, side)."""
    across = F.pad(pixels, (1, 1, 0, 0), mode="replicate")
    across = across[..., 2:] - across[..., :-2]
    down = F.pad(pixels, (0, 0, 1, 1), mode="replicate")
    down = down[..., 2:, :] - down[..., :-2, :]
    strongest = (across**2 + down**2).argmax(1, keepdim=True)
    across, down = across.gather(1, strongest)[:, 0], down.gather(1, strongest)[:, 0]
    strength = ((across**2 + down**2).sqrt() - 0.25).clamp(min=0)  # pale backgrounds have no edges
    angle = torch.atan2(down, across) % math.pi / math.pi * BINS
    near = [(1 - ((angle - b + BINS / 2) % BINS - BINS / 2).abs()).clamp(min=0) for b in range(BINS)]
    return strength, torch.stack(near, 1)


def _shares(sums: Tensor) -> Tensor:
    """Share of each direction among the edges in and around a patch, wherever the thing lies."""
    own = F.avg_pool2d(sums, PATCH // CELL)
    around = F.avg_pool2d(F.pad(sums, (MARGIN,) * 4), CELLS, stride=PATCH // CELL)
    return torch.cat([part / (part.sum(1, keepdim=True) + 0.01) for part in (own, around)], 1).flatten(2)


def _colours(pixels: Tensor) -> Tensor:
    """Soft histograms over 3 x 3 x 3 colours, of each patch itself and of what surrounds it."""
    levels = torch.stack([(1 - (pixels - level).abs()).clamp(min=0) for level in COLOUR_LEVELS], 1)
    joint = levels[:, :, None, None, 0] * levels[:, None, :, None, 1] * levels[:, None, None, :, 2]
    fine = F.avg_pool2d(joint.flatten(1, 3), CELL)
    own = F.avg_pool2d(fine, PATCH // CELL)
    around = F.avg_pool2d(F.pad(fine, (MARGIN,) * 4, mode="replicate"), CELLS, stride=PATCH // CELL)
    return torch.cat([own, around], 1).flatten(2) * 3
