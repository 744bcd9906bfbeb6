"""The stock classes that a tower and an LLM are put in, and what each wants to be told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import (
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    JanusConfig,
    JanusForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
)

from lockadapt.errors import AssemblyError
from lockadapt.models.towers import TowerFacts


@dataclass(frozen=True)
class Body:
    """A stock class. `pack` turns projected features (images, tokens, hidden) into what its forward expects."""

    model_class: type[PreTrainedModel]
    config_class: type[Any]
    pack: Callable[[Tensor], Any]


LLAVA = Body(LlavaForConditionalGeneration, LlavaConfig, list)
"""For towers that return tokens. Wants a list with the tokens of each image."""

FAST_VLM = Body(FastVlmForConditionalGeneration, FastVlmConfig, lambda projected: projected)
"""For towers that return feature maps. Wants one tensor."""

JANUS = Body(JanusForConditionalGeneration, JanusConfig, lambda projected: projected)
"""For SigLIP towers beside an image tokenizer: the class that also draws. Wants one tensor."""

BODIES = {"tokens": LLAVA, "feature-map": FAST_VLM, "image-tokenizer": JANUS}


def body_of(model: PreTrainedModel) -> Body:
    """The body that a stock model is an instance of.

    Raises:
        AssemblyError: it is another class.
    """
    for body in BODIES.values():
        if isinstance(model, body.model_class):
            return body
    raise AssemblyError(
        f"{type(model).__name__} is not one of the classes that lockadapt trains",
        fix="start from a LLaVA, FastVLM or Janus checkpoint in Transformers format",
    )


def feature_strategy(facts: TowerFacts) -> str:
    """`default` drops the tower's first token (a class token), `full` keeps all."""
    return "default" if facts.extra_tokens else "full"


def stock_config(
    facts: TowerFacts,
    text_config: PreTrainedConfig,
    vision_config: PreTrainedConfig,
    image_token_id: int,
    activation: str,
) -> PreTrainedConfig:
    """Config of the stock class for these parts."""
    return BODIES[facts.kind].config_class(
        text_config=text_config,
        vision_config=vision_config,
        image_token_index=image_token_id,
        image_seq_length=facts.tokens,
        projector_hidden_act=activation,
        vision_feature_layer=facts.feature_layer,
        vision_feature_select_strategy=feature_strategy(facts),
        tie_word_embeddings=text_config.tie_word_embeddings,
    )


def processor_arguments(facts: TowerFacts) -> dict[str, Any]:
    """What `LlavaProcessor` needs so that its image-token count equals the feature count.

    It counts `(side // patch_size) ** 2 + num_additional_image_tokens`, less one with the `default` strategy.
    """
    return {
        "patch_size": facts.patch_size,
        "num_additional_image_tokens": facts.extra_tokens,
        "vision_feature_select_strategy": feature_strategy(facts),
    }
