"""Janus (arXiv 2410.13848): reads images through a SigLIP tower and generates them, token by token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import JanusConfig, JanusForConditionalGeneration, JanusProcessor

from lockadapt.architectures.assembly import Assembly, Fusion
from lockadapt.architectures.base import (
    Architecture,
    Clients,
    Generation,
    ImageSpan,
    Inputs,
    ModelLayout,
    Positions,
)
from lockadapt.architectures.bridge import projector_features
from lockadapt.architectures.inputs import count_image_tokens
from lockadapt.architectures.janus.graft import (
    IMAGE_BOUNDARY_TOKENS,
    graft,
    janus_processor,
    set_image_generation,
    tower,
)
from lockadapt.architectures.janus.image_tokenizer import image_codec
from lockadapt.architectures.projectors import normal_
from lockadapt.models.towers import TowerFacts

LAYOUT = ModelLayout(
    tower="model.vision_model",
    llm="model.language_model",
    projector=("model.aligner",),
    head="lm_head",
    generation=("model.generation_aligner", "model.generation_head"),
    image_tokenizer=("model.vqmodel", "model.generation_embeddings"),
)


@torch.no_grad()
def _every_layer(projector: Any, generator: torch.Generator) -> None:
    for layer in projector.modules():
        if isinstance(layer, nn.Linear):
            normal_(layer, generator)


MLP = Fusion("mlp", "gelu", _every_layer, first="fc1", scaled="hidden_layers.0", depth=2)
LINEAR = Fusion("linear", "linear", _every_layer, first="fc1", scaled="fc1", depth=1)
FUSIONS = {fusion.name: fusion for fusion in (MLP, LINEAR)}
"""One layer or two, the activation being the tower's."""


def fusion_of(config: Any) -> Fusion:
    """By the depth of the aligner, which Janus keeps in the tower's config."""
    return LINEAR if config.vision_config.depth == 1 else MLP


def projected(output: Any, vision: TowerFacts) -> Tensor:
    """The last hidden state, behind the tower's last norm."""
    return output.last_hidden_state


def framed_span(processor: Any) -> ImageSpan:
    """The processor puts a token before an image's tokens and one behind them."""
    return ImageSpan(
        processor.image_token,
        count_image_tokens(processor),
        processor.image_start_token,
        processor.image_end_token,
    )


def embed_image_tokens(model: Any, image_token_ids: Tensor) -> Tensor:
    """Aligned embeddings of image tokens, as the stock `generate` feeds them back."""
    aligner = model.model.generation_aligner
    return aligner(model.model.generation_embeddings(image_token_ids).to(aligner.fc1.weight.dtype))


def image_token_logits(model: Any, hidden: Tensor) -> Tensor:
    """What the image-generation head says of hidden states."""
    head = model.model.generation_head
    return head(hidden.to(head.proj_out.weight.dtype))


JANUS = Architecture(
    model_class=JanusForConditionalGeneration,
    config_class=JanusConfig,
    layout=LAYOUT,
    inputs=Inputs(JanusProcessor, framed_span),
    assemble=Assembly(
        fusions=FUSIONS,
        fusion_of=fusion_of,
        towers=("tokens", "feature-map"),  # what is no SigLIP is refused by its tensors
        projected=projected,
        build=graft,
        processor=janus_processor,
        tower=tower,
        finish=set_image_generation,
        special_tokens=IMAGE_BOUNDARY_TOKENS,
        image_tokenizer=True,
    ),
    features=projector_features(pack=lambda projected: projected, layout=LAYOUT),
    positions=Positions(),
    clients=Clients(
        refused={
            "gguf": "llama.cpp cannot generate images, so the image tokenizer and the image-generation head "
            "would be lost"
        }
    ),
    generation=Generation(
        codec=lambda model: image_codec(model.model.vqmodel),
        embed=embed_image_tokens,
        logits=image_token_logits,
    ),
    unit_rows=("model.vqmodel.quantize.embedding.weight",),
)
