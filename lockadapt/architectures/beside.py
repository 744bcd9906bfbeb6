"""What classes share whose images are shown beside the text: processor, kept features, scale at the start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrOCRProcessor

from lockadapt.architectures.assembly import Fusion, Ingredients
from lockadapt.architectures.base import Features, Inputs
from lockadapt.architectures.standardise import channel_statistics, fold
from lockadapt.models.towers import TowerFacts

INPUTS = Inputs(TrOCRProcessor, None, beside=True)
"""A plain pair of image processor and tokenizer; the tokenizer has the template, as the pair keeps none."""


def untouched(projector: Any, generator: torch.Generator) -> None:
    """See `Fusion.initialise`: these classes have no one module between tower and LLM to fill."""


CROSS_ATTENTION = Fusion("cross-attention", "", untouched, first="", scaled="", depth=1, tokenwise=True)
"""Fresh layers inside the LLM attend to the tower's outputs; at their start the LLM computes what it did."""


REFUSED = {
    "gguf": "llama.cpp has no graph for images beside the text",
    "colpali": "images are shown beside the text, so no tokens of theirs can be embedded",
    "adapter-full": "PEFT cannot save cross-attention whole beside LoRA in the same blocks: --to adapter "
    "writes it into a bridge",
}
"""See `Clients.refused`."""


def draw_(matrix: Tensor, generator: torch.Generator, *, transposed: bool = False) -> None:
    """Fills a matrix from N(0, 1 / inputs), so that outputs are as large as inputs; in place.

    Args:
        matrix: (out, in), or (in, out) if transposed. Nothing happens on the meta device.
        generator: draws in float32, so that a seed means the same in any dtype.
        transposed: whether it is one of GPT-2's.
    """
    if not matrix.is_meta:
        inputs = matrix.shape[0 if transposed else 1]
        matrix.copy_(torch.randn(matrix.shape, generator=generator) * inputs**-0.5)


def processor(ingredients: Ingredients, template: str) -> Any:
    """See `Assembly.processor`."""
    ingredients.tokenizer.chat_template = template
    return TrOCRProcessor(ingredients.image_processor, ingredients.tokenizer)


def last_hidden_state(output: Any, vision: TowerFacts) -> Tensor:
    """All that the tower returns, class token and registers among it, (images, tokens, channels)."""
    return output.last_hidden_state


def tower_features(tower: str, name: str, wrap: Any) -> Features:
    """What the tower returns is kept, and comes back by an argument of forward.

    Args:
        tower: its path.
        name: of the argument.
        wrap: features -> what the argument takes.

    Returns:
        How features are taken and given.
    """

    @torch.no_grad()
    def take(model: Any, images: Mapping[str, Tensor]) -> Tensor:
        return model.get_submodule(tower)(images["pixel_values"]).last_hidden_state

    def give(model: Any, features: Tensor, scales: Tensor | None) -> dict[str, Any]:
        features = features.to(model.device)
        if scales is not None:
            features = features * scales.to(model.device)
        return {name: wrap(features.to(model.dtype))}

    return Features(take, give)


@torch.no_grad()
def standardise(layers: Sequence[nn.Module], batches: Iterable[Tensor]) -> int:
    """Lets layers that read a tower's outputs work on standardised ones, by their weights; in place.

    Where a layer has no bias, the mean's share of a key is the same for all tokens, which attention does not
    see, and that of a value moves all tokens alike.

    Args:
        layers: linear ones, or GPT-2's transposed ones, each fed with the tower's outputs.
        batches: of outputs, (images, tokens, channels).

    Returns:
        How many images were looked at.
    """
    images, mean, deviation = channel_statistics(batches)
    for layer in layers:
        fold(layer, mean, deviation)
    return images
