"""Autocast for a run whose projector is float32 beside a tower and an LLM of 16 bits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from lockadapt.architectures import layout_of
from lockadapt.architectures.base import parameters_at, unwrap_model


@contextlib.contextmanager
def training_autocast(model: nn.Module) -> Iterator[None]:
    """The trainer's arithmetic where a model is called without it: autocast, if its dtypes need that.

    The stock classes hand the tower's outputs to the projector, and the LLM's to the image-generation head,
    as they are, which fails if the two differ. A loaded run is of one dtype, and computes as it will once
    merged; LoRA's layers convert by themselves.
    """
    base, parts = unwrap_model(model), layout_of(model)
    paths = (parts.tower, *parts.projector, *parts.generation)
    firsts = (next(parameters_at(base, path), None) for path in paths)
    dtypes = {first.dtype for first in firsts if first is not None}
    if len(dtypes) < 2:
        yield
        return
    small = next(dtype for dtype in dtypes if dtype != torch.float32)
    with torch.autocast(next(base.parameters()).device.type, dtype=small):
        yield
