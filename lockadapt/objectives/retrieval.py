"""Embed images and texts: through the whole model, with query tokens, or with a dual encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lockadapt.architectures import architecture_of, layout_of, llm_of
from lockadapt.architectures.base import RETRIEVAL, unwrap_model
from lockadapt.models.texts import Pooling, pool, probe_text
from lockadapt.objectives.answer_tokens import model_inputs
from lockadapt.objectives.gradcache import embed_in_chunks
from lockadapt.objectives.temperature import Temperature
from lockadapt.tuning.training_autocast import training_autocast


class Retrieval(nn.Module):
    """What a contrastive run adds to a Transformers model, in float32.

    Its `embedding_proj_layer` maps hidden state to embedding, as `ColPaliForRetrieval` has it and calls it;
    None in a dual encoder, which has projections of its own. `image_head` and `text_head` are the second
    layers of a dual encoder's MLP heads, behind its projections and a GELU; None: the heads are linear.

    Args:
        hidden: size of a hidden state; None: a dual encoder.
        dimension: of embeddings.
        temperature: of the loss.
        pooling: how a sequence becomes one state; `tokens`: not at all.
        mlp: whether a dual encoder's heads have two layers.
    """

    def __init__(
        self,
        hidden: int | None,
        dimension: int,
        temperature: Temperature,
        pooling: Pooling,
        mlp: bool = False,
    ) -> None:
        super().__init__()
        self.embedding_proj_layer = None if hidden is None else nn.Linear(hidden, dimension)
        self.image_head = nn.Linear(dimension, dimension) if mlp else None
        self.text_head = nn.Linear(dimension, dimension) if mlp else None
        self.temperature, self.pooling = temperature, pooling


def add_retrieval(
    model: nn.Module,
    dimension: int,
    temperature: Temperature,
    pooling: Pooling | None,
    mlp: bool = False,
) -> None:
    """Puts a `Retrieval` beside the parts of a Transformers model; where there is one it stays.

    Args:
        model: a Transformers model, possibly wrapped by PEFT.
        dimension: of embeddings; a dual encoder has its own already.
        temperature: of the loss.
        pooling: None: the last token, or in a dual encoder what suits its text model (`TextFacts.pooling`).
        mlp: see `Retrieval`.

    Raises:
        AssemblyError: the text model of a dual encoder cannot be pooled so.
    """
    base = unwrap_model(model)
    if hasattr(base, RETRIEVAL):
        return
    hidden, pooled = None, pooling or "last"
    if architecture_of(base).embeds_apart:
        pooled = probe_text(llm_of(base), layout_of(base).llm).pooling(pooling)
    else:
        hidden = int(llm_of(base).config.hidden_size)
    # Drawn beside the stream of random numbers, so that a run without it has the same order of samples.
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        module = Retrieval(hidden, dimension, temperature, pooled, mlp)
    base.add_module(RETRIEVAL, module.to(next(base.parameters()).device))


def retrieval_of(model: nn.Module) -> Any:
    """The `Retrieval` of a Transformers model, wrapped or not."""
    return unwrap_model(model).get_submodule(RETRIEVAL)


def embed_sequences(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Embeds token sequences.

    Args:
        model: a stock LLaVA, FastVLM, Janus or dual encoder with `retrieval`, possibly wrapped by PEFT.
        inputs: `input_ids`, `attention_mask` int64 (rows, tokens), padded on the right, the query tokens
            last; and `pixel_values` or `image_features` where the rows have images.

    Returns:
        Normalised embeddings, float32 (rows, dimension); with pooling `tokens` of every token, float32 (rows,
        tokens, dimension), zeros where the mask is.
    """
    base, own, mask = unwrap_model(model), retrieval_of(model), inputs["attention_mask"]
    if apart := architecture_of(base).apart:
        return embed_states(model, apart.states(base, inputs["input_ids"], mask, own.pooling))
    with training_autocast(model):
        hidden = base.model(**model_inputs(model, inputs), use_cache=False).last_hidden_state
    layer = own.embedding_proj_layer
    if own.pooling == "tokens":
        return F.normalize(layer(hidden.to(layer.weight.dtype)).float(), dim=-1) * mask[..., None]
    return F.normalize(layer(pool(hidden, mask, own.pooling).to(layer.weight.dtype)).float(), dim=-1)


def embed_features(model: nn.Module, features: Tensor) -> Tensor:
    """Embeds images of a dual encoder.

    Args:
        model: a dual encoder with `retrieval`, possibly wrapped by PEFT.
        features: (images, 1, channels), as its frozen tower pools them.

    Returns:
        Normalised embeddings, float32 (images, dimension).
    """
    apart = architecture_of(model).apart
    assert apart is not None
    return headed(apart.images(model, features), retrieval_of(model).image_head)


def embed_states(model: nn.Module, states: Tensor) -> Tensor:
    """Embeds texts of a dual encoder.

    Args:
        model: a dual encoder with `retrieval`, possibly wrapped by PEFT.
        states: (texts, hidden size), as its text model pools them.

    Returns:
        Normalised embeddings, float32 (texts, dimension).
    """
    apart = architecture_of(model).apart
    assert apart is not None
    return headed(apart.texts(model, states), retrieval_of(model).text_head)


def headed(projected: Tensor, layer: Any) -> Tensor:
    """Puts what a dual encoder projected through an MLP head's second layer, if there is one.

    Args:
        projected: (rows, dimension).
        layer: linear; None: none.

    Returns:
        Normalised embeddings, float32 (rows, dimension).
    """
    if layer is not None:
        projected = layer(F.gelu(projected).to(layer.weight.dtype))
    return F.normalize(projected.float(), dim=-1)


def in_chunks(model: nn.Module, rows: int, chunk: int, embed: Callable[[slice], Tensor]) -> Tensor:
    """Embeds a batch `chunk` rows at a time: in their memory, with the whole batch's gradient.

    Args:
        model: the one that embeds; its trainable parameters get the gradient.
        rows: of the batch.
        chunk: rows at a time.
        embed: a part of the batch -> its embeddings.

    Returns:
        Embeddings, float32 (rows, dimension).
    """
    parts = [slice(start, min(start + chunk, rows)) for start in range(0, rows, chunk)]
    if not torch.is_grad_enabled():
        return torch.cat([embed(part) for part in parts])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return embed_in_chunks([lambda part=part: embed(part) for part in parts], trained)  # type: ignore[misc]
