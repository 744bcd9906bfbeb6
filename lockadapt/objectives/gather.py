"""Embeddings and keys of all processes, with gradient, so that a batch over many processes is one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lockadapt import processes
from lockadapt.errors import DataError


def gather(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Gathers every process's rows in the order of ranks; gives the tensor itself where there is one process.

    Embeddings keep their gradient: in the backward pass each process gets the sum, over all processes, of the
    gradients of its own rows. So when every process computes the same loss from what it gathered, a tensor
    before the gather has on each process (number of processes) times its part of the gradient, and a tensor
    after it (temperature, bias) the whole gradient. The mean over processes (what DDP takes, or the sum where
    each divides its loss by their number) is then the gradient of one process that holds the whole batch.

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
    if not _together(group):
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


def sum_gradients(parameters: Sequence[Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Replaces `.grad` by its sum over processes, in place, in one exchange a dtype.

    For passes that no hook of DDP sees: chunks that run twice, objectives that leave parameters unused. A
    parameter without gradient on one process counts as zero there if another process has one, and has none
    where no process has.

    Args:
        parameters: those that train, in the same order on every process.
        group: the processes that add up; None: all.
    """
    if not _together(group):
        return
    for dtype in dict.fromkeys(parameter.dtype for parameter in parameters):
        some = [parameter for parameter in parameters if parameter.dtype == dtype]
        present = torch.tensor([float(p.grad is not None) for p in some], device=some[0].device)
        pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in some]
        flat = torch.cat([*(piece.detach().flatten() for piece in pieces), present.to(dtype)])
        dist.all_reduce(flat, group=group)
        sums = flat.split([*(p.numel() for p in some), len(some)])
        for parameter, total, holders in zip(some, sums, sums[-1].tolist(), strict=False):
            if holders:
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                parameter.grad.copy_(total.view_as(parameter))


def _together(group: dist.ProcessGroup | None) -> bool:
    """Whether there are other processes to exchange with."""
    if group is None:
        return processes.count() > 1
    return dist.get_world_size(group) > 1


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
