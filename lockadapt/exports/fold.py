"""Folds adapters into the stock model: each added to its layer in float32, rounded once."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lockadapt.architectures.base import RETRIEVAL, unwrap_model


@torch.no_grad()
def folded(model: nn.Module) -> Any:
    """The stock model with LoRA and query tokens in its weights, in float32 where there was an adapter."""
    if not hasattr(model, "merge_and_unload"):
        return unwrap_model(model)
    return model.float().merge_and_unload(safe_merge=False)  # type: ignore[operator]


def take_retrieval(model: nn.Module) -> Any:
    """Takes out of a stock model what a contrastive run added, so that only the stock class is left; None without any."""
    base = unwrap_model(model)
    module = getattr(base, RETRIEVAL, None)
    if module is not None:
        delattr(base, RETRIEVAL)
    return module
