"""The projectors of LLaVA and FastVLM, and how fresh linear layers start."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lockadapt.architectures.assembly import Fusion


def normal_(layer: nn.Linear, generator: torch.Generator) -> None:
    """Weights from N(0, 1 / inputs), bias zero. Drawn in float32, so that a seed means the same in any dtype.

    On the meta device, which has no values, nothing happens.
    """
    if layer.weight.is_meta:
        return
    drawn = torch.randn(layer.weight.shape, generator=generator) / layer.in_features**0.5
    layer.weight.copy_(drawn)
    if layer.bias is not None:
        layer.bias.zero_()


@torch.no_grad()
def _two_layers(projector: Any, generator: torch.Generator) -> None:
    """Standardised features stay of unit variance."""
    normal_(projector.linear_1, generator)
    normal_(projector.linear_2, generator)


@torch.no_grad()
def _one_layer(projector: Any, generator: torch.Generator) -> None:
    normal_(projector.linear_1, generator)
    second = projector.linear_2
    second.weight.copy_(torch.eye(second.weight.shape[0], device=second.weight.device))
    second.bias.zero_()


MLP = Fusion("mlp", "gelu", _two_layers, first="linear_1", scaled="linear_2", depth=2)
"""`linear_2(gelu(linear_1(features)))`, as LLaVA-1.5 has it (arXiv 2310.03744)."""

LINEAR = Fusion(
    "linear", "linear", _one_layer, first="linear_1", scaled="linear_1", depth=1, frozen=("linear_2",)
)
"""A linear projector in the stock two-layer one: no activation, and a second layer that stays the
identity."""

FUSIONS = {fusion.name: fusion for fusion in (MLP, LINEAR)}


def fusion_of(config: Any) -> Fusion:
    """That of a LLaVA or FastVLM: linear where its projector has no activation, else mlp."""
    return LINEAR if config.projector_hidden_act == LINEAR.activation else MLP
