"""Linear projector in the stock two-layer one: no activation, and a second layer that stays the identity."""

from __future__ import annotations

from typing import Any

import torch

from lockadapt.architectures.fusions.projectors import Projector, normal_


@torch.no_grad()
def initialise(projector: Any, generator: torch.Generator) -> None:
    """First layer from N(0, 1 / inputs) with zero bias, second layer the identity. In place."""
    normal_(projector.linear_1, generator)
    second = projector.linear_2
    second.weight.copy_(torch.eye(second.weight.shape[0]))
    second.bias.zero_()


LINEAR = Projector(
    name="linear",
    activation="linear",
    initialise=initialise,
    first="linear_1",
    scaled="linear_1",
    trained=("linear_1",),
)
