"""BLIP-2 (arXiv 2301.12597): a Q-Former reads images with learned queries; the LLM lies whole behind it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Blip2Config, Blip2ForConditionalGeneration, LlavaProcessor
from transformers.models.blip_2.modeling_blip_2 import BaseModelOutputWithVisionQformerOutputs

from lockadapt.architectures.assembly import Assembly
from lockadapt.architectures.base import Architecture, Clients, Features, Inputs, ModelLayout, Positions
from lockadapt.architectures.blip2.build import (
    QFORMER,
    build,
    processor,
    projected,
    set_generation_ends,
    tower,
)
from lockadapt.architectures.blip2.tower import unfit_tower
from lockadapt.architectures.inputs import counted_span
from lockadapt.architectures.standardise import channel_statistics, fold
from lockadapt.models.llms import is_encoder_decoder, llm_arguments

NO_BODY = "Blip2ForConditionalGeneration has no body without a head that would embed"


def locate(model: Any) -> ModelLayout:
    """The LLM's body and head lie where its own class has them; see `Architecture.locate`.

    An encoder-decoder is its own body, with blocks in encoder and decoder.
    """
    llm = model.language_model
    paths = {module: f"language_model.{name}".removesuffix(".") for name, module in llm.named_modules()}
    coded = is_encoder_decoder(llm.config)
    body = llm if coded else llm.base_model
    stacks = (llm.get_encoder(), llm.get_decoder()) if coded else ()
    return ModelLayout(
        tower="vision_model",
        llm=paths[body],
        projector=("qformer", "query_tokens", "language_projection"),
        head=paths[llm.get_output_embeddings()],
        blocks=tuple(paths[_first_list(stack)] for stack in stacks),
    )


def _first_list(stack: Any) -> nn.Module:
    return next(part for part in stack.modules() if isinstance(part, nn.ModuleList))


def project(model: Any, features: Tensor) -> Tensor:
    """What the tower gives, (images, tokens, channels) -> (images, queries, hidden), with graph."""
    states = model.qformer(
        query_embeds=model.query_tokens.expand(len(features), -1, -1),
        encoder_hidden_states=features,
        encoder_attention_mask=torch.ones(features.shape[:-1], dtype=torch.long, device=features.device),
        return_dict=True,
    ).last_hidden_state
    return model.language_projection(states.to(model.language_projection.weight.dtype))


@torch.no_grad()
def take(model: Any, images: Mapping[str, Tensor]) -> Tensor:
    """See `Features.take`."""
    return model.vision_model(images["pixel_values"], return_dict=True).last_hidden_state


def give(model: Any, features: Tensor, scales: Tensor | None) -> dict[str, Any]:
    """See `Features.give`."""
    weight = model.language_projection.weight
    features = features.to(weight.device)
    if scales is not None:
        features = features * scales.to(weight.device)
    return _shown(project(model, features.to(weight.dtype)))


def no_image(model: Any) -> dict[str, Any]:
    """See `Inputs.no_image`: tokens of no image."""
    table = model.get_input_embeddings().weight
    shape = (0, model.config.num_query_tokens, table.shape[1])
    return _shown(torch.empty(shape, dtype=table.dtype, device=table.device))


def writer(model: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """See `Architecture.writer`: the LLM, given embeddings, as by its own `generate`, which takes pixels."""
    given = dict(inputs)
    shown, values, ids = (
        given.pop("mm_encoder_outputs", None),
        given.pop("pixel_values", None),
        given["input_ids"],
    )
    if "cache" in given:
        return model.language_model, given
    if is_encoder_decoder(model.language_model.config):
        given.pop("decoder_input_ids", None)
        del given["input_ids"]  # what it writes does not begin with the prompt
    shown = shown["image"] if shown is not None else model.get_image_features(values)
    embeddings = model.get_input_embeddings()(ids)
    shown_at = (ids == model.config.image_token_id)[..., None]
    given["inputs_embeds"] = embeddings.masked_scatter(shown_at, shown.pooler_output.to(embeddings.dtype))
    return model.language_model, given


def arguments(model: Any, ids: Tensor, pixel_values: Tensor) -> dict[str, Any]:
    """See `Assembly.arguments`: forward wants pixels with every text, also where no token stands for them."""
    given = llm_arguments(model.language_model, ids)
    return {**given, "attention_mask": torch.ones_like(ids), "pixel_values": pixel_values}


@torch.no_grad()
def calibrate(model: Any, batches: Iterable[Tensor], embedding_rms: float) -> int:
    """See `Assembly.calibrate`: every layer that reads the image reads standardised features.

    Their size at the other end is measured on the first batch.
    """
    first: list[Tensor] = []

    def features() -> Iterator[Tensor]:
        for batch in batches:
            first.extend([batch] if not first else [])
            yield batch

    images, mean, deviation = channel_statistics(features())
    for layer in model.qformer.encoder.layer:
        for part in (layer.crossattention.attention.key, layer.crossattention.attention.value):
            fold(part, mean, deviation)
    size = float(project(model, first[0]).double().square().mean().sqrt())
    for tensor in model.language_projection.parameters():
        tensor.mul_(embedding_rms / size if size > 0 else 1.0)
    return images


def _shown(tokens: Tensor) -> dict[str, Any]:
    output = BaseModelOutputWithVisionQformerOutputs(pooler_output=tokens)
    # Forward has no default for pixels.
    return {"pixel_values": None, "mm_encoder_outputs": {"image": output}}


BLIP2 = Architecture(
    model_class=Blip2ForConditionalGeneration,
    config_class=Blip2Config,
    layout=ModelLayout(
        tower="vision_model",
        llm="language_model",
        projector=("qformer", "query_tokens", "language_projection"),
        head="language_model.lm_head",
    ),
    inputs=Inputs(
        LlavaProcessor,
        counted_span,
        no_image=no_image,
        image_tokens=lambda model: model.config.num_query_tokens,
    ),
    assemble=Assembly(
        fusions={QFORMER.name: QFORMER},
        fusion_of=lambda config: QFORMER,
        towers=("tokens",),
        projected=projected,
        build=build,
        processor=processor,
        tower=tower,
        finish=set_generation_ends,
        whole_llm=True,
        encoder_decoders=True,
        arguments=arguments,
        calibrate=calibrate,
        refuse=lambda llm, tower: unfit_tower(tower),
    ),
    features=Features(take, give),
    positions=Positions(),
    clients=Clients(
        refused={
            "gguf": "llama.cpp has no graph for a Q-Former",
            "colpali": NO_BODY,
            "sentence-transformers": NO_BODY,
        }
    ),
    settings=("image_token_id", "num_query_tokens"),
    locate=locate,
    writer=writer,
)
