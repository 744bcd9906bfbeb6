"""FastVLM (arXiv 2412.13303): LLaVA's projector behind a tower that returns a feature map, such as a CNN."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import FastVlmConfig, FastVlmForConditionalGeneration, LlavaProcessor

from lockadapt.architectures.assembly import Assembly, Fusion, Ingredients
from lockadapt.architectures.base import Architecture, Clients, Inputs, Positions
from lockadapt.architectures.bridge import LAYOUT, common_config, join, projector_features
from lockadapt.architectures.inputs import counted_span
from lockadapt.architectures.llava import processor
from lockadapt.architectures.projectors import FUSIONS, fusion_of
from lockadapt.models.towers import TowerFacts


def build(ingredients: Ingredients, fusion: Fusion, seed: int) -> Any:
    """See `Assembly.build`."""
    config = FastVlmConfig(
        **common_config(ingredients),
        image_seq_length=ingredients.vision.tokens,
        projector_hidden_act=fusion.activation,
    )
    return join(FastVlmForConditionalGeneration, config, ingredients, fusion, seed)


def projected(output: Any, vision: TowerFacts) -> Tensor:
    """The last feature map (images, channels, rows, columns), row by row."""
    return output.last_hidden_state.flatten(2).transpose(1, 2)


FAST_VLM = Architecture(
    model_class=FastVlmForConditionalGeneration,
    config_class=FastVlmConfig,
    layout=LAYOUT,
    inputs=Inputs(LlavaProcessor, counted_span),
    assemble=Assembly(
        fusions=FUSIONS,
        fusion_of=fusion_of,
        towers=("feature-map",),
        projected=projected,
        build=build,
        processor=processor,
    ),
    features=projector_features(pack=lambda projected: projected),
    positions=Positions(),
    clients=Clients(
        refused={
            "gguf": "llama.cpp has no graph for this CNN tower beside a plain projector; "
            "a CLIP or SigLIP tower can be exported"
        }
    ),
)
