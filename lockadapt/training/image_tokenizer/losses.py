"""Losses of a reconstruction beside pixels: features of a frozen tower, and a critic trained against it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lockadapt.models.preprocessing import pixels as preprocess
from lockadapt.models.preprocessing import square_processor
from lockadapt.models.quiet import quiet
from lockadapt.models.towers import load_tower

CRITIC_WIDTH = 32


class TowerDistance:
    """Mean squared difference of two pictures' tower outputs, every position's features of length 1.

    The measure of LPIPS (arXiv 1801.03924, equation 1) without its learned weights.

    Args:
        tower: folder or Hub id of a vision model; frozen.
        side: pixels on a side of the pictures, whose values go from -1 to 1.

    Raises:
        SetupError, AssemblyError: as `load_tower`.
    """

    def __init__(self, tower: str | Path, side: int) -> None:
        loaded = load_tower(tower, torch.float32)
        square, self.side = square_processor(loaded.image_processor, None, loaded.source.name)
        self.model: Any = loaded.model
        self.scale, self.shift = _affine(square)
        self.resize = self.side != side

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Scalar with graph to `first`, for two batches (pictures, 3, side, side)."""
        with torch.no_grad():
            wanted = self._features(second)
        return (self._features(first) - wanted).square().sum(dim=1).mean()

    def to(self, device: torch.device) -> None:
        """Move the tower."""
        self.model.to(device)
        self.scale, self.shift = self.scale.to(device), self.shift.to(device)

    def _features(self, values: Tensor) -> Tensor:
        if self.resize:
            values = F.interpolate(values, size=(self.side, self.side), mode="bilinear", align_corners=False)
        with quiet():
            states: Tensor = self.model(values * self.scale + self.shift).last_hidden_state
        flat = states.transpose(1, 2) if states.ndim == 3 else states.flatten(2)
        return F.normalize(flat, dim=1)


class Critic(nn.Module):
    """A patch critic (arXiv 1611.07004): (pictures, 3, side, side) -> real logits, (pictures, 1, h, w)."""

    def __init__(self, width: int = CRITIC_WIDTH) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 3, 1, 1),
        )

    def forward(self, values: Tensor) -> Tensor:
        """See the class."""
        return self.layers(values)


def hinge(real: Tensor, made: Tensor) -> Tensor:
    """What the critic minimises (arXiv 1705.02894, equation 3): scalar of its logits."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + made).mean())


def _affine(square: Any) -> tuple[Tensor, Tensor]:
    """Maps values between -1 and 1 to what the tower's image processor makes of them, per channel."""
    from PIL import Image

    black, white = (
        preprocess(square, [Image.new("RGB", (8, 8), colour)])[0, :, 0, 0] for colour in ("black", "white")
    )
    scale = (white - black) / 2
    return scale.view(1, -1, 1, 1), (black + scale).view(1, -1, 1, 1)


Distance = Callable[[Tensor, Tensor], Tensor]
"""How far two batches of pictures are apart, with graph to the first."""
