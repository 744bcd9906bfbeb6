"""Load a text model, decoder LLM or encoder, and find out by running it how a text becomes one vector."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lockadapt.errors import AssemblyError
from lockadapt.models.finite import require_finite
from lockadapt.models.llms import context_of, load_llm, probe_ids
from lockadapt.models.sources import Source, check_unexpected, find, loading, some

Pooling = Literal["pooler", "last", "mean", "tokens"]
"""`pooler`: the model's own. `last`: the last token that is no padding. `mean`: over all that are none.
`tokens`: none, every token keeps its state (late interaction)."""

POOLINGS: dict[str, tuple[Pooling, ...]] = {
    "pooler": ("pooler", "mean"),
    "causal": ("last", "mean"),
    "bidirectional": ("mean",),
}
"""Which poolings make sense by `TextFacts.kind`, the best first."""


@dataclass(frozen=True)
class LoadedText:
    """A text model without a head, in evaluation mode, frozen; and the checkpoint's unused keys."""

    model: PreTrainedModel
    source: Source
    unexpected: tuple[str, ...]


@dataclass(frozen=True)
class TextFacts:
    """What a text model was measured to be.

    Attributes:
        kind: `pooler`: it returns a pooled vector; else `causal`, no token sees a later one, or
            `bidirectional`.
        hidden_size: width of its states and of what it is pooled to.
        rows: of the embedding table.
        context: the longest text in tokens, None where unlimited.
    """

    kind: Literal["pooler", "causal", "bidirectional"]
    hidden_size: int
    rows: int
    context: int | None

    def pooling(self, wanted: Pooling | None) -> Pooling:
        """Gives the pooling that is wanted, or the best.

        Args:
            wanted: None: the best.

        Returns:
            The pooling.

        Raises:
            AssemblyError: this model cannot be pooled so.
        """
        allowed = POOLINGS[self.kind]
        if wanted is None or wanted in allowed:
            return wanted or allowed[0]
        why = {
            "pooler": "it returns no pooled vector",
            "last": "its last token is nothing special: every token sees all others",
            "mean": "",
            "tokens": "a dual encoder compares one vector a side",
        }[wanted]
        raise AssemblyError(
            f"pooling {wanted!r} does not fit this text model: {why}", fix=f"use {allowed[0]!r}"
        )


def load_text(text: str | Path, dtype: torch.dtype) -> LoadedText:
    """Loads a text model from a folder or Hub id; of a two-tower checkpoint (CLIP) its text part.

    Args:
        text: folder or Hub id.
        dtype: of the weights.

    Returns:
        The model, in evaluation mode and frozen.

    Raises:
        SetupError: it does not exist or cannot be read.
        AssemblyError: it does not take texts, its weights are incomplete, or it is stored quantized.
        VerificationError: a weight is not finite.
    """
    source = find(text, "LLM")
    with loading(source, "LLM"):
        config = AutoConfig.from_pretrained(source.name, **source.arguments)
    if getattr(config, "quantization_config", None) is not None:
        raise AssemblyError(
            "the text model is stored quantized, so its exact weights are not known",
            where=source.name,
            fix="give the full-precision checkpoint",
        )
    with loading(source, "LLM"):
        loaded: Any = AutoModel.from_pretrained(
            source.name, dtype=dtype, use_safetensors=True, output_loading_info=True, **source.arguments
        )
    model, info = loaded
    unexpected = check_unexpected(model, info["unexpected_keys"], "LLM", source)
    missing = set(info["missing_keys"])
    if getattr(config, "text_config", None) is not None:
        prefix, model = _text_part(model, source)
        missing = {name for name in missing if name.startswith(prefix)}
    if missing and _without_pooler(model, missing):
        missing = set()
    if missing and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        # A tied table that is stored under the head's name: with its head the model is complete.
        whole = load_llm(text, dtype)
        model, unexpected, missing = whole.model.base_model, whole.unexpected, set()
    if missing:
        raise AssemblyError(
            f"the text model's checkpoint lacks {some(missing)}",
            where=source.name,
            fix="use a complete checkpoint",
        )
    if model.main_input_name != "input_ids":
        raise AssemblyError(
            f"{type(model).__name__} does not take texts", where=source.name, fix="give a text model"
        )
    require_finite(model, source.name)
    return LoadedText(model.eval().requires_grad_(False), source, unexpected)


@torch.no_grad()
def probe_text(text: PreTrainedModel, where: str, seed: int = 0) -> TextFacts:
    """Runs the text model on random tokens and reads from its outputs what it is.

    Args:
        text: the model.
        where: it is from, for messages.
        seed: of the random tokens.

    Returns:
        What was measured.

    Raises:
        AssemblyError: it fails, or returns no states of (rows, tokens, hidden size).
    """
    table: Any = text.get_input_embeddings()
    rows = int(table.weight.shape[0])
    context = context_of(text.config)
    ids = probe_ids(rows, seed, context).to(table.weight.device)
    mask = torch.ones_like(ids)
    try:
        output = text(input_ids=ids, attention_mask=mask, return_dict=True)
        changed = torch.cat([ids[:, :-1], (ids[:, -1:] + 1) % rows], dim=1)
        other = text(input_ids=changed, attention_mask=mask, return_dict=True)
    except Exception as error:
        raise AssemblyError(
            f"{type(text).__name__} cannot embed a text: {(str(error).splitlines() or [''])[0]}",
            where=where,
            fix="give a decoder LLM, or an encoder such as BERT, RoBERTa or CLIP's text model",
        ) from error
    states, width = getattr(output, "last_hidden_state", None), int(text.config.hidden_size)
    if not isinstance(states, Tensor) or tuple(states.shape) != (*ids.shape, width):
        raise AssemblyError(
            f"{type(text).__name__} returns no states of {width} dimensions for every token", where=where
        )
    pooled = getattr(output, "pooler_output", None)
    if (
        isinstance(pooled, Tensor)
        and tuple(pooled.shape) == (ids.shape[0], width)
        and not torch.equal(pooled[0], pooled[1])  # see `_without_pooler`
    ):
        return TextFacts("pooler", width, rows, context)
    looks_ahead = not torch.allclose(states[:, 0], other.last_hidden_state[:, 0], atol=1e-5)
    return TextFacts("bidirectional" if looks_ahead else "causal", width, rows, context)


def load_text_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """Loads the text model's own tokenizer, padding on the right, with a pad token.

    On the right, because no state of a causal model then depends on the padding, whatever its positions are.

    Args:
        source: the text model.

    Returns:
        The tokenizer.

    Raises:
        SetupError: there is no tokenizer that loads.
        AssemblyError: there is nothing to pad with.
    """
    with loading(source, "LLM's tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source.name, padding_side="right", **source.arguments)
    for name in ("is_local", "local_files_only"):  # how it was loaded here is not to be saved with it
        tokenizer.init_kwargs.pop(name, None)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise AssemblyError(
                "the tokenizer has neither a pad token nor an end-of-text token",
                where=source.name,
                fix="set pad_token in tokenizer_config.json",
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@torch.no_grad()
def _without_pooler(model: PreTrainedModel, missing: set[str]) -> bool:
    """Whether the states do not depend on the missing weights: masked LMs are saved without their pooler.

    If so these weights become zeros, so that the pooled vector is the same for all texts, and no one takes it
    for one.
    """
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    absent = [tensors[name] for name in missing if name in tensors and tensors[name].is_floating_point()]
    if model.main_input_name != "input_ids" or not absent:
        return False
    table: Any = model.get_input_embeddings()
    ids = probe_ids(table.weight.shape[0], 0)
    states = []
    for value in (0.37, 0.0):
        for tensor in absent:
            tensor.fill_(value)
        states.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state)
    return torch.equal(*states)


def _text_part(full: PreTrainedModel, source: Source) -> tuple[str, PreTrainedModel]:
    with torch.device("meta"), loading(source, "LLM's text part"):
        kind = type(AutoModel.from_config(full.config.text_config))
    for name, module in full.named_modules():
        if type(module) is kind:
            return (f"{name}." if name else ""), module
    raise AssemblyError(f"{type(full).__name__} has no {kind.__name__} inside", where=source.name)


def pool(states: Tensor, attention_mask: Tensor, pooling: Pooling) -> Tensor:
    """Pools (rows, tokens, hidden) to (rows, hidden), over positions that the mask keeps, padded on any side.

    The mean is that of sentence-transformers' `Pooling`, `last` its `lasttoken`.
    """
    if pooling == "mean":
        weights = attention_mask[..., None].to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)
    if pooling != "last":
        raise AssemblyError(f"states cannot be pooled by {pooling!r}", fix="use `last` or `mean`")
    positions = torch.arange(states.shape[1], device=states.device)
    last = (attention_mask.to(positions.dtype) * positions).argmax(1)
    return states[torch.arange(len(states), device=states.device), last]
