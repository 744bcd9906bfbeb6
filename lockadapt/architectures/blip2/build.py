"""The stock BLIP-2 model around a tower and a whole LLM, with a fresh Q-Former between them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2QFormerConfig, LlavaProcessor

from lockadapt.architectures.assembly import Fusion, Ingredients
from lockadapt.architectures.blip2.tower import blip2_tower, prove_tower
from lockadapt.architectures.bridge import forget_origin, make_room, same_structure
from lockadapt.architectures.projectors import normal_
from lockadapt.models.embeddings import image_token_id
from lockadapt.models.quiet import quiet
from lockadapt.models.towers import TowerFacts

WIDEST = 768
"""Channels of a Q-Former at most, which is BLIP-2's own width."""

LAYERS = 4
"""Layers of a Q-Former, each of which looks at the image."""

QUERY_SIZE = 0.02
"""Deviation of fresh queries; a norm follows, so that only their differences count."""


def tower(ingredients: Ingredients, fusion: Fusion, pixel_values: Tensor | None) -> Any:
    """The tower as BLIP-2 has it; see `Assembly.tower`."""
    made = blip2_tower(ingredients.tower, ingredients.vision.image_size, ingredients.where)
    if pixel_values is not None:
        prove_tower(ingredients.tower, made, pixel_values, ingredients.where)
    return made


def projected(output: Any, vision: TowerFacts) -> Tensor:
    """The last hidden state behind the last norm, class token and patches."""
    return output.last_hidden_state


def build(ingredients: Ingredients, fusion: Fusion, seed: int) -> Any:
    """See `Assembly.build`. The Q-Former is as wide as the tower, up to BLIP-2's own width."""
    llm, tower = ingredients.llm, ingredients.tower
    narrow = tower.config.hidden_size <= WIDEST
    width = tower.config.hidden_size if narrow else WIDEST
    qformer = Blip2QFormerConfig(
        hidden_size=width,
        num_hidden_layers=LAYERS,
        num_attention_heads=tower.config.num_attention_heads if narrow else WIDEST // 64,
        intermediate_size=4 * width,
        cross_attention_frequency=1,
        # Samples of an image share its tokens, so that each is computed as if it stood alone.
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config = Blip2Config(
        vision_config=tower.config,
        qformer_config=qformer,
        text_config=llm.config,
        num_query_tokens=ingredients.queries,
        image_token_index=image_token_id(ingredients.tokenizer),
    )
    with torch.device("meta"), quiet():
        model: Any = Blip2ForConditionalGeneration(config)
    same_structure("tower", model.vision_model, tower)
    same_structure("LLM", model.language_model, llm)
    model.vision_model, model.language_model = tower, llm
    for name in ("qformer", "language_projection"):
        make_room(getattr(model, name), llm)
    model.query_tokens = nn.Parameter(
        torch.empty(model.query_tokens.shape, dtype=llm.dtype, device=llm.device)
    )
    fusion.initialise(model, torch.Generator().manual_seed(seed))
    forget_origin(llm.dtype, model.config, llm.config, tower.config, model.qformer.config)
    return model.eval()


@torch.no_grad()
def initialise(model: Any, generator: torch.Generator) -> None:
    """Linear layers from N(0, 1 / inputs), norms that only normalise, and queries that differ.

    The stock class starts queries as zeros: all alike, they would stay so.
    """
    for part in (model.qformer, model.language_projection):
        for module in part.modules():
            if isinstance(module, nn.Linear):
                normal_(module, generator)
            elif isinstance(module, nn.LayerNorm):
                module.weight.fill_(1.0)
                module.bias.zero_()
    if not model.query_tokens.is_meta:
        drawn = torch.randn(model.query_tokens.shape, generator=generator) * QUERY_SIZE
        model.query_tokens.copy_(drawn)


QFORMER = Fusion(
    "qformer",
    "",
    initialise,
    first="",  # several layers read the image: see `Assembly.calibrate`
    scaled="",
    depth=LAYERS,
    tokenwise=False,
    queries=32,
)
"""Queries that learn read the image (arXiv 2301.12597); each becomes one token."""


def processor(ingredients: Ingredients, template: str) -> Any:
    """The stock processor of LLaVA, told that an image is one patch and `queries - 1` tokens more.

    BLIP-2's own puts image tokens before bos, and loses the chat template.
    """
    return LlavaProcessor(
        ingredients.image_processor,
        ingredients.tokenizer,
        chat_template=template,
        patch_size=ingredients.vision.image_size,
        num_additional_image_tokens=ingredients.queries - 1,
        vision_feature_select_strategy="full",
    )


def set_generation_ends(model: Any, tokenizer: Any) -> None:
    """Lets the LLM's own config say what begins, ends and pads a text, in place; see `Assembly.finish`.

    The stock `generate` calls that of the LLM, whose settings are made of that config as it is loaded.
    """
    settings, text = model.generation_config, model.config.text_config
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(text, name, getattr(settings, name))
