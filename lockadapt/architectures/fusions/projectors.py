"""What a fusion says of its projector, whatever the stock class around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Projector:
    """A fusion.

    `activation` is the stock config's `projector_hidden_act`; `initialise` fills a fresh projector in place;
    `first` is the layer that reads the tower's features; `scaled` the one whose weights set the size of the output;
    `trained` are the layers that learn.
    """

    name: str
    activation: str
    initialise: Callable[[Any, torch.Generator], None]
    first: str
    scaled: str
    trained: tuple[str, ...]


def normal_(layer: nn.Linear, generator: torch.Generator) -> None:
    """Weights from N(0, 1 / inputs), bias zero. Drawn in float32, so that a seed means the same in any dtype."""
    drawn = torch.randn(layer.weight.shape, generator=generator) / layer.in_features**0.5
    layer.weight.copy_(drawn)
    if layer.bias is not None:
        layer.bias.zero_()
