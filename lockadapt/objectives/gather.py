"""Embeddings and keys of all processes, with gradient, so that a batch over many processes is one batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lockadapt.errors import DataError


def gather(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Gathers every process's rows in the order of ranks; gives the tensor itself where there is one process.

    Embeddings keep their gradient: in the backward pass each process gets the sum, over all processes, of the
    gradients of its own rows. So when every process computes the same loss from what it gathered, a tensor
    before the gather has on each process (number of processes) times its part of the gradient, and a tensor
    after it (temperature, bias) the whole gradient. The mean over processes, which is what DDP takes, is then
    the gradient of one process that holds the whole batch, for both.

    Keys must mean the same everywhere: numbers of images in the data set, not in the batch, and no `hash()`
    of strings.

    Args:
        tensor: (rows, ...), any dtype, on each process of the group; all of them must call.
        group: the processes that gather; None: all.

    Returns:
        (rows of all processes, ...).

    Raises:
        DataError: the processes hold different shapes; on every process, so that none waits.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        return tensor
    shape = torch.tensor(tensor.shape, device=tensor.device)
    shapes = [torch.empty_like(shape) for _ in range(dist.get_world_size(group))]
    dist.all_gather(shapes, shape, group=group)
    if any(not torch.equal(shape, other) for other in shapes):
        raise DataError(
            f"processes hold embeddings of different shapes: {[tuple(other.tolist()) for other in shapes]}",
            where="contrastive batch",
            fix="give every process as many rows: drop the last, incomplete batch",
        )
    return _Gather.apply(tensor, group)  # type: ignore[no-any-return]


def average_gradients(parameters: list[Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Replaces `.grad` by its mean over processes, for passes that DDP's hooks did not see; in place.

    A parameter without gradient on one process counts as zero there if another process has one.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        return
    if not parameters:
        return
    present = torch.tensor(
        [float(parameter.grad is not None) for parameter in parameters], device=parameters[0].device
    )
    dist.all_reduce(present, group=group)
    for parameter, some in zip(parameters, present.tolist(), strict=True):
        if some:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad, group=group)
            parameter.grad /= dist.get_world_size(group)


class _Gather(torch.autograd.Function):
    """All processes' rows forward, the sum of all processes' gradients for one's own rows backward.

    torch.distributed.nn has the same, deprecated since torch 2.13.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:  # type: ignore[override]
        ctx.group, ctx.rows = group, len(tensor)
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, tensor.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        start = dist.get_rank(ctx.group) * ctx.rows
        return total[start : start + ctx.rows], None
