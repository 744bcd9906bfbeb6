"""Extrapolates peak memory from the first blocks of a model: equal blocks cost equal amounts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lockadapt.architectures.base import unwrap_model
from lockadapt.architectures.blocks import blocks_path
from lockadapt.planning.memory import StepPeak, step_peak
from lockadapt.planning.sizes import named_tensors

SHALLOW = (2, 3)
"""Blocks that are traced of a deeper model."""
TRACED_WHOLE = 6
"""Models of up to so many blocks are traced as they are."""


def extrapolated_peak(
    model: nn.Module,
    loss: Callable[[], torch.Tensor],
    accumulate: bool = False,
    batch: Sequence[torch.Tensor] = (),
) -> tuple[int, dict[str, int]]:
    """As `step_peak`: the largest sum of live bytes in a forward and backward, and its parts.

    Until the first gradient arrives, every moment grows by one block's activations a block. After it, what is
    alive falls by a block's activations and rises by its gradients with each block, so that the largest
    moment is at one of the ends, and grows by the larger of the two. Two shallow traces give both, whatever
    the depth.
    """
    blocks = list(unwrap_model(model).get_submodule(blocks_path(model)))
    if len(blocks) <= TRACED_WHOLE or len({_shape(block) for block in blocks}) > 1:
        whole = step_peak(model, loss, accumulate, batch)
        return whole.total, whole.parts
    low, high = (
        _shallow(model, depth, lambda: step_peak(model, loss, accumulate, batch)) for depth in SHALLOW
    )
    missing = (len(blocks) - SHALLOW[1]) // (SHALLOW[1] - SHALLOW[0])
    weights = sum({id(tensor): tensor.nbytes for _, tensor in named_tensors(model)}.values())
    trained = sum(p.nbytes for p in blocks[0].parameters() if p.requires_grad)
    # What both shallow traces held of weights and of gradients from before is known exactly; the rest is
    # compared.
    before = [_moving(trace.segments[0][1], accumulate) for trace in (low, high)]
    growth = before[1] - before[0]
    moments = []
    for number, (_, parts) in enumerate(high.segments):
        late = number > 0 and not accumulate and trained > growth
        deeper = {
            **parts,
            "weights": weights,
            "activations": parts.get("activations", 0) + (0 if late else growth * missing),
            "gradients": parts.get("gradients", 0) + (trained * missing if late or accumulate else 0),
        }
        moments.append((sum(deeper.values()), deeper))
    return max(moments, key=lambda moment: moment[0])


def _moving(parts: dict[str, int], accumulate: bool) -> int:
    kept = ("weights", "gradients") if accumulate else ("weights",)
    return sum(size for label, size in parts.items() if label not in kept)


def _shallow(model: nn.Module, depth: int, traced: Callable[[], StepPeak]) -> StepPeak:
    with _first_blocks(model, depth):
        return traced()


@contextmanager
def _first_blocks(model: nn.Module, depth: int) -> Iterator[None]:
    """Within the block the LLM has its first `depth` blocks only."""
    base: Any = unwrap_model(model)
    parent, _, leaf = blocks_path(model).rpartition(".")
    holder = base.get_submodule(parent)
    whole, config = getattr(holder, leaf), holder.config
    count = config.num_hidden_layers
    setattr(holder, leaf, nn.ModuleList(list(whole)[:depth]))
    config.num_hidden_layers = depth
    try:
        yield
    finally:
        config.num_hidden_layers = count
        setattr(holder, leaf, whole)


def _shape(block: nn.Module) -> tuple[Any, ...]:
    return tuple((name, tensor.shape, tensor.dtype) for name, tensor in block.named_parameters())
