"""Positions of packed rows by the class's own rule, where images count otherwise than by their tokens."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lockadapt.architectures.base import unwrap_model


def tree_positions(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Positions of packed rows: the class's own of each tree's first sample, counted on behind it.

    All images of a tree stand in the beginning that its samples share, and behind the last image a text
    counts one by one, so that other branches go on from the first one's positions.

    Args:
        model: a Transformers model, possibly wrapped.
        batch: packed, see `lockadapt.data.batch.Batch`, with the keys of its images.

    Returns:
        int64 (rows, tokens), each token's depth; or (dimensions, rows, tokens), where the class counts in
        several.
    """
    depths: Tensor = batch["position_ids"]
    owner = _owner(unwrap_model(model))
    if owner is None:
        return depths
    stems: Tensor = batch["stems"]
    there = stems >= 0
    places = stems.clamp(min=0)
    plain = {name: batch[name].flatten()[places] for name in ("input_ids", *batch.get("token_keys", ()))}
    given = {**batch, **plain, "attention_mask": there.long()}
    wanted = inspect.signature(owner.get_rope_index).parameters
    table: Tensor = owner.get_rope_index(**{name: given[name] for name in wanted if name in given})[0]
    lengths = there.sum(1)
    numbers = torch.arange(len(stems), device=stems.device)
    ahead = table[:, numbers, lengths - 1].amax(0) + 1 - lengths
    trees = batch["trees"].clamp(min=0)
    inside = depths < lengths[trees]
    known = table[:, trees, depths.clamp(max=table.shape[-1] - 1)]
    return torch.where(inside, known, depths + ahead[trees])


def _owner(base: nn.Module) -> Any:
    """The outermost module that knows positions of its own."""
    return next((module for module in base.modules() if hasattr(module, "get_rope_index")), None)
