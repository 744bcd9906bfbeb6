"""LLaVA (arXiv 2310.03744): a projector of two layers between a vision transformer's tokens and an LLM."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from lockadapt.architectures.assembly import Assembly, Fusion, Ingredients
from lockadapt.architectures.base import Architecture, Clients, Inputs, Positions
from lockadapt.architectures.bridge import (
    LAYOUT,
    common_config,
    feature_strategy,
    join,
    nested_tower_keys,
    projector_features,
)
from lockadapt.architectures.inputs import counted_span
from lockadapt.architectures.projectors import FUSIONS, fusion_of
from lockadapt.models.towers import TowerFacts, hidden_state


def build(ingredients: Ingredients, fusion: Fusion, seed: int) -> Any:
    """See `Assembly.build`."""
    config = LlavaConfig(
        **common_config(ingredients),
        image_seq_length=ingredients.vision.tokens,
        projector_hidden_act=fusion.activation,
    )
    return join(LlavaForConditionalGeneration, config, ingredients, fusion, seed)


def processor(ingredients: Ingredients, template: str) -> Any:
    """The stock processor, told what makes its image-token count equal the feature count.

    It counts `(side // patch_size) ** 2 + num_additional_image_tokens`, less one with the `default` strategy.
    A fusion that makes one token of `factor` patches a side is a patch of so many times the size.
    """
    vision = ingredients.vision
    return LlavaProcessor(
        ingredients.image_processor,
        ingredients.tokenizer,
        chat_template=template,
        patch_size=vision.patch_size * ingredients.factor,
        num_additional_image_tokens=vision.extra_tokens,
        vision_feature_select_strategy=feature_strategy(vision),
    )


def projected(output: Any, vision: TowerFacts) -> Tensor:
    """A hidden state of the tower, or several side by side, without its class token."""
    return hidden_state(output, vision.feature_layer)[:, min(vision.extra_tokens, 1) :]


LLAVA = Architecture(
    model_class=LlavaForConditionalGeneration,
    config_class=LlavaConfig,
    layout=LAYOUT,
    inputs=Inputs(LlavaProcessor, counted_span),
    assemble=Assembly(
        fusions=FUSIONS,
        fusion_of=fusion_of,
        towers=("tokens",),
        projected=projected,
        build=build,
        processor=processor,
        several_layers=True,
    ),
    features=projector_features(pack=list),  # forward wants a list with the tokens of each image
    positions=Positions(),
    keys=nested_tower_keys,
    clients=Clients(servers=("vllm", "sglang"), llava_graph=True),
)
