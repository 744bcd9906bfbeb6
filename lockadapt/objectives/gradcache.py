"""GradCache: embeds a batch of any size in the memory of one chunk, with the whole batch's gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states

from lockadapt.errors import NoGradientError
from lockadapt.tuning.sharding import is_shared

Chunk = Callable[[], Tensor]
"""Embeds one chunk of the batch: (rows of the chunk, size). It runs twice and must do the same both times."""


def embed_in_chunks(chunks: Sequence[Chunk], parameters: Sequence[Tensor]) -> Tensor:
    """Embeds all chunks, with graph to the parameters; arXiv 2101.06983.

    Forward, each chunk runs without graph. Backward, when the loss has given the gradient of the embeddings,
    each chunk runs again with graph, from the same random state and autocast, and is left behind before the
    next one runs. Any number of sides can be embedded so, and any loss put on top of them:
    `loss(embed_in_chunks(images, p), embed_in_chunks(texts, p), ...)`. What the loss learns itself gets its
    gradient as always, and factors on the loss (weights, accumulation, GradScaler) reach the chunks. A single
    chunk, or no gradient, is computed directly.

    Random states of torch are replayed, on the CPU and on the parameters' devices: dropout, LoRA's dropout.
    Those of `random` and NumPy are not, nor what a module changes when it runs: BatchNorm layers in training
    mode would move their statistics twice and normalise by chunk, so keep them in evaluation mode. Gradient
    checkpointing inside a chunk must be the non-reentrant one.

    DDP: the parameters' gradients leave this function as those of an ordinary node, so a parameter's hook
    fires once a backward pass. But a chunk must not call the DDP wrapper itself: its forward, run again
    within the backward pass, would make it forget what it has reduced. Either chunks, gather and loss all run
    inside the forward of the module that DDP wraps, and DDP reduces as always; or chunks call the module
    inside the wrapper, DDP's hooks stay silent (`no_sync`), and `gather.sum_gradients` is called after
    the last backward pass of the step. FSDP: gradients do not leave this function but are added to `.grad`
    chunk by chunk.

    Args:
        chunks: in the order of the batch; closures over their inputs.
        parameters: everything that requires gradient and that a chunk uses; more does no harm.

    Returns:
        (rows of all chunks, size), in the dtype that the chunks give.

    Raises:
        NoGradientError: in the backward pass, if a chunk uses a tensor that requires gradient and is not
            among the parameters: it would silently not learn.
    """
    if len(chunks) == 1 or not torch.is_grad_enabled():
        return torch.cat([chunk() for chunk in chunks])
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return _Embed.apply(chunks, *trained)  # type: ignore[no-any-return]


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, chunks: Sequence[Chunk], *parameters: Tensor) -> Tensor:  # type: ignore[override]
        ctx.chunks, ctx.parameters, ctx.starts, embedded = chunks, parameters, [], []
        for chunk in chunks:
            start = _Start.now(parameters)
            ctx.starts.append(start)
            with start.autocast():
                embedded.append(chunk())
        ctx.rows = [len(part) for part in embedded]
        return torch.cat(embedded)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        sums: list[Tensor | None] = [None] * len(ctx.parameters)
        for chunk, start, part in zip(ctx.chunks, ctx.starts, gradient.split(ctx.rows), strict=True):
            with torch.enable_grad(), start.again():
                embedded = chunk()
            if any(map(is_shared, ctx.parameters)):
                # What processes share gets its gradient by hooks of torch's own, so all leaves keep theirs.
                torch.autograd.backward(embedded, part.to(embedded.dtype))
                continue
            if start is ctx.starts[0]:
                _check(embedded, ctx.parameters)
            if not embedded.requires_grad:
                continue
            gradients = torch.autograd.grad(
                embedded, ctx.parameters, part.to(embedded.dtype), allow_unused=True
            )
            # Not in place: autograd may give one tensor to two parameters.
            sums = [
                total if more is None else more if total is None else total + more
                for total, more in zip(sums, gradients, strict=True)
            ]
        return None, *sums


@dataclass(frozen=True)
class _Start:
    """What a chunk starts from: torch's random states, and autocast."""

    random: Tensor
    device: str
    devices: list[int]
    device_random: list[Tensor]
    casts: dict[str, tuple[bool, torch.dtype]]

    @classmethod
    def now(cls, parameters: Sequence[Tensor]) -> _Start:
        elsewhere = {
            parameter.device: parameter for parameter in parameters if parameter.device.type != "cpu"
        }
        device = next((tensor.type for tensor in elsewhere), "cpu")
        devices, states = get_device_states(*elsewhere.values()) if elsewhere else ([], [])
        casts = {
            kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in sorted({"cpu", device})
        }
        return cls(torch.get_rng_state(), device, devices, states, casts)

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Random states and autocast as they were; the random states of now return afterwards."""
        now = torch.get_rng_state()
        with torch.random.fork_rng(self.devices, device_type=self.device, enabled=bool(self.devices)):
            torch.set_rng_state(self.random)
            if self.devices:
                set_device_states(self.devices, self.device_random, device_type=self.device)
            try:
                with self.autocast():
                    yield
            finally:
                torch.set_rng_state(now)

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Autocast as it was, without its cache: a cast weight belongs to the run that made it."""
        with contextlib.ExitStack() as stack:
            for kind, (enabled, dtype) in self.casts.items():
                stack.enter_context(torch.autocast(kind, dtype, enabled, cache_enabled=False))
            yield


def _check(embedded: Tensor, parameters: Sequence[Tensor]) -> None:
    """Every leaf of the graph is a parameter."""
    known, seen, waiting = {id(parameter) for parameter in parameters}, set(), [embedded.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            raise NoGradientError(
                f"a chunk uses a tensor of shape {tuple(leaf.shape)} that requires gradient and would "
                "get none",
                where="GradCache",
                fix="name it among the parameters, or freeze it",
            )
        waiting.extend(before for before, _ in node.next_functions)
