"""Where query tokens' vocabulary rows stand in a model, and what the head has there while they train."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lockadapt.architectures import layout_of
from lockadapt.architectures.base import unwrap_model

Rows = tuple[Tensor, Tensor]
"""Vocabulary ids, int64 (n,), and the rows that stand there, (n, hidden)."""


def embedding_path(model: nn.Module) -> str:
    """Full path of the LLM's embedding table."""
    base = unwrap_model(model)
    table: Any = base.get_submodule(layout_of(base).llm).get_input_embeddings()
    return next(name for name, module in base.named_modules() if module is table)


def head_rows(model: nn.Module) -> Rows | None:
    """What a head tied to the embeddings has at the query tokens, where they are trained; else None.

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
