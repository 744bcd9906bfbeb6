"""Two-layer projector: `linear_2(gelu(linear_1(features)))`, as LLaVA-1.5 has it (arXiv 2310.03744)."""

from __future__ import annotations

from typing import Any

import torch

from lockadapt.architectures.fusions.projectors import Projector, normal_


@torch.no_grad()
def initialise(projector: Any, generator: torch.Generator) -> None:
    """Weights from N(0, 1 / inputs), biases zero: standardised features stay of unit variance. In place."""
    normal_(projector.linear_1, generator)
    normal_(projector.linear_2, generator)


MLP = Projector(
    name="mlp",
    activation="gelu",
    initialise=initialise,
    first="linear_1",
    scaled="linear_2",
    trained=("linear_1", "linear_2"),
)
