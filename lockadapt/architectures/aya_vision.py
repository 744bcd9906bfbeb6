"""Aya Vision (arXiv 2505.08751): patches merged into fewer, wider tokens; a SwiGLU projector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AyaVisionConfig, AyaVisionForConditionalGeneration, LlavaProcessor

from lockadapt.architectures.assembly import Assembly, Fusion, Ingredients
from lockadapt.architectures.base import SETTINGS, Architecture, Clients, Inputs, Positions
from lockadapt.architectures.bridge import (
    LAYOUT,
    common_config,
    join,
    nested_tower_keys,
    projector_features,
)
from lockadapt.architectures.inputs import counted_span
from lockadapt.architectures.llava import processor, projected
from lockadapt.architectures.projectors import normal_


@torch.no_grad()
def initialise(projector: Any, generator: torch.Generator) -> None:
    """Both linear layers from N(0, 1 / inputs), the LayerNorm as it is by default."""
    projector.layernorm.weight.fill_(1.0)
    projector.layernorm.bias.zero_()
    normal_(projector.linear_1, generator)
    normal_(projector.linear_2, generator)


PIXEL_SHUFFLE = Fusion(
    "pixel-shuffle",
    "silu",
    initialise,
    first="linear_1",  # standardisation is measured and folded behind the LayerNorm
    scaled="linear_2",
    depth=2,
    tokenwise=False,
    factor=2,
)
"""`linear_2(silu(gate) * x)` with `x, gate = linear_1(layernorm(merged patches))`."""


def build(ingredients: Ingredients, fusion: Fusion, seed: int) -> Any:
    """See `Assembly.build`. Half of `linear_1`'s outputs are gates, so it has twice the LLM's width."""
    settings = {
        **common_config(ingredients),
        "downsample_factor": ingredients.factor,
        # No declared field, but the projector reads it and config.json keeps it.
        "alignment_intermediate_size": 2 * ingredients.text.hidden_size,
    }
    return join(AyaVisionForConditionalGeneration, AyaVisionConfig(**settings), ingredients, fusion, seed)


def one_row_an_image(projector_output: Tensor) -> Tensor:
    """(images, rows, columns, hidden) -> (images, tokens, hidden)."""
    return projector_output.flatten(1, 2)


AYA_VISION = Architecture(
    model_class=AyaVisionForConditionalGeneration,
    config_class=AyaVisionConfig,
    layout=LAYOUT,
    inputs=Inputs(LlavaProcessor, counted_span),
    assemble=Assembly(
        fusions={PIXEL_SHUFFLE.name: PIXEL_SHUFFLE},
        fusion_of=lambda config: PIXEL_SHUFFLE,
        towers=("tokens",),
        projected=projected,
        build=build,
        processor=processor,
    ),
    features=projector_features(pack=one_row_an_image),
    positions=Positions(),
    keys=nested_tower_keys,
    clients=Clients(refused={"gguf": "llama.cpp has no graph for patches merged before a SwiGLU projector"}),
    settings=(*SETTINGS, "downsample_factor"),
)
