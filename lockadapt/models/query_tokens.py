"""Query tokens: new vocabulary rows, trained by PEFT, behind whose hidden state an embedding is read (SLQ, arXiv 2604.13710)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lockadapt.errors import AdapterError
from lockadapt.models.parts import layout_of, unwrap_model

Rows = tuple[Tensor, Tensor]
"""Vocabulary ids, int64 (n,), and the rows that stand there, (n, hidden)."""


def query_token(number: int) -> str:
    """The text of the query token of that number, from 1."""
    return f"<query_{number}>"


def add_query_tokens(tokenizer: PreTrainedTokenizerBase, count: int) -> None:
    """Makes `count` query tokens special tokens of the tokenizer; those that are there stay."""
    known = tokenizer.get_vocab()
    new = [query_token(number) for number in range(1, count + 1) if query_token(number) not in known]
    if new:
        # Beside `<image>` and others, not in their place.
        tokenizer.add_special_tokens({"additional_special_tokens": new}, replace_extra_special_tokens=False)


def query_token_ids(tokenizer: PreTrainedTokenizerBase, count: int) -> list[int]:
    """Their ids.

    Raises:
        AdapterError: the tokenizer lacks one.
    """
    known = tokenizer.get_vocab()
    wanted = [query_token(number) for number in range(1, count + 1)]
    missing = [token for token in wanted if token not in known]
    if missing:
        raise AdapterError(
            f"the tokenizer has no {missing[0]}",
            where="objectives.….query_tokens",
            fix="let lockadapt assemble the model, or start from a run's base",
        )
    return [known[token] for token in wanted]


def embedding_path(model: nn.Module) -> str:
    """Full path of the LLM's embedding table."""
    base = unwrap_model(model)
    table: Any = base.get_submodule(layout_of(base).llm).get_input_embeddings()
    return next(name for name, module in base.named_modules() if module is table)


def head_rows(model: nn.Module) -> Rows | None:
    """What the head has at the query tokens, where it is tied to the embeddings and they are trained; else None.

    Its `weight` says nothing of it: PEFT puts the trained rows in as the head is called. Without graph.
    """
    head = unwrap_model(model).get_submodule(layout_of(model).head)
    layer: Any = getattr(head, "token_adapter", head)
    delta = getattr(layer, "trainable_tokens_delta", None)
    if delta is None or layer.disable_adapters:
        return None
    (name,) = layer.active_adapters
    rows: Tensor = delta[name].detach()
    return torch.tensor(layer.token_indices[name], device=rows.device), rows
