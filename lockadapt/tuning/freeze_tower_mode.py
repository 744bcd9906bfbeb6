"""Keeps a frozen tower in evaluation mode while somebody else's trainer calls `model.train()`."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from lockadapt.architectures import tower_of


def keep_tower_still(model: nn.Module) -> RemovableHandle:
    """Keeps the tower of a model, wrapped or not, in evaluation mode, whatever mode the model is in.

    lockadapt's own trainer does so. Others put the whole model into training mode: the running statistics of
    a CNN's BatchNorm then move although no parameter does, and so do dropout and stochastic depth where a
    tower has them.

    Args:
        model: a Transformers model, possibly wrapped.

    Returns:
        A handle whose `remove()` ends it.
    """
    return tower_of(model).register_forward_pre_hook(_to_eval)


def _to_eval(module: nn.Module, _: Any) -> None:
    module.eval()
