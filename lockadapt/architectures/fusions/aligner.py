"""The same projectors as the stock Janus class has them: one layer or two, the activation being its tower's."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lockadapt.architectures.fusions.projectors import Projector, normal_


@torch.no_grad()
def initialise(projector: Any, generator: torch.Generator) -> None:
    """Weights from N(0, 1 / inputs), biases zero, in every layer. In place."""
    for layer in projector.modules():
        if isinstance(layer, nn.Linear):
            normal_(layer, generator)


JANUS_MLP = Projector(
    name="mlp",
    activation="gelu",
    initialise=initialise,
    first="fc1",
    scaled="hidden_layers.0",
    trained=("fc1", "hidden_layers.0"),
)
JANUS_LINEAR = Projector(
    name="linear", activation="linear", initialise=initialise, first="fc1", scaled="fc1", trained=("fc1",)
)
