"""Embeds images and texts through the one body of a run: the hidden state behind query tokens, projected and normalised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lockadapt.models.parts import RETRIEVAL, llm_of, stock
from lockadapt.objectives.answer_tokens import model_inputs
from lockadapt.objectives.gradcache import embed_in_chunks
from lockadapt.objectives.similarity import Kind
from lockadapt.objectives.temperature import Temperature

Pooling = Literal["last", "mean"]


class Retrieval(nn.Module):
    """What a contrastive run adds to a stock model, in float32.

    Attributes:
        embedding_proj_layer: hidden state -> embedding, as `ColPaliForRetrieval` has it and calls it; None in a dual
            encoder, which has projections of its own.
        temperature: of the loss.
    """

    def __init__(self, hidden: int | None, dimension: int, kind: Kind, negatives: int) -> None:
        super().__init__()
        self.embedding_proj_layer = None if hidden is None else nn.Linear(hidden, dimension)
        self.temperature = Temperature(kind, negatives)


def add_retrieval(
    model: nn.Module, dimension: int, kind: Kind, negatives: int, projected: bool = True
) -> None:
    """Puts a `Retrieval` beside the parts of a stock model; where there is one it stays.

    Args:
        projected: whether embeddings need a projection that the stock class lacks.
    """
    base = stock(model)
    if hasattr(base, RETRIEVAL):
        return
    hidden = int(llm_of(base).config.hidden_size) if projected else None
    # Drawn beside the stream of random numbers, so that a run without it has the same order of samples.
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        module = Retrieval(hidden, dimension, kind, negatives)
    base.add_module(RETRIEVAL, module.to(next(base.parameters()).device))


def retrieval_of(model: nn.Module) -> Any:
    """The `Retrieval` of a stock model, wrapped or not."""
    return stock(model).get_submodule(RETRIEVAL)


def embed_sequences(model: nn.Module, inputs: dict[str, Tensor], pooling: Pooling) -> Tensor:
    """Normalised embeddings of token sequences, float32 (rows, dimension).

    Args:
        model: a stock LLaVA, FastVLM or Janus with `retrieval`, possibly wrapped by PEFT.
        inputs: `input_ids`, `attention_mask` int64 (rows, tokens), padded on the right, the query tokens last; and
            `pixel_values` or `image_features` where the rows have images.
        pooling: the last token, or the mean over all that are no padding.
    """
    base = stock(model)
    hidden = base.model(**model_inputs(model, inputs), use_cache=False).last_hidden_state
    pooled = pool(hidden, inputs["attention_mask"], pooling)
    layer = retrieval_of(model).embedding_proj_layer
    return F.normalize(layer(pooled.to(layer.weight.dtype)).float(), dim=-1)


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """One state a row, (rows, hidden), of states (rows, tokens, hidden) that are padded on the right."""
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights).sum(1) / weights.sum(1)


def in_chunks(model: nn.Module, rows: int, chunk: int, embed: Callable[[slice], Tensor]) -> Tensor:
    """Embeddings (rows, dimension) of a batch, `chunk` rows at a time: their memory, the whole batch's gradient.

    Args:
        embed: a part of the batch -> its embeddings.
    """
    parts = [slice(start, min(start + chunk, rows)) for start in range(0, rows, chunk)]
    if not torch.is_grad_enabled():
        return torch.cat([embed(part) for part in parts])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return embed_in_chunks([lambda part=part: embed(part) for part in parts], trained)  # type: ignore[misc]
