"""The head and its cross-entropy, on the scored positions only and in chunks: never all logits at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lockadapt.architectures import answers_apart, architecture_of
from lockadapt.tuning.training_autocast import training_autocast

CHUNK_BYTES = 128 * 2**20
"""Float32 logits that exist at a time."""


class _ChunkedLoss(torch.autograd.Function):
    """Mean cross-entropy of a frozen head, with its gradient made in the forward pass.

    A head that does not train needs only the gradient of its input, (softmax - one-hot) W, which is at hand
    while a chunk's logits are: nothing as wide as the vocabulary is kept, and nothing is computed twice.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        logit_index: Tensor,
        targets: Tensor,
        chunk: int,
        ids: Tensor | None,
        rows_there: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        gradient = torch.zeros_like(hidden, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
        # Targets in the order of the logits that predict them; a logit row may predict several.
        order = torch.argsort(logit_index, stable=True)
        rows, wanted = logit_index[order], targets[order]
        counts = torch.bincount(rows, minlength=len(hidden))
        ends = counts.cumsum(0)
        starts = range(0, len(hidden), chunk)
        # One wait for the device, not one a chunk.
        stops = ends[[min(start + chunk, len(hidden)) - 1 for start in starts]].tolist()
        before = 0
        for start, after in zip(starts, stops, strict=True):
            part = hidden[start : start + chunk]
            logits = F.linear(part, weight, bias).float()
            if ids is not None and rows_there is not None:
                logits[:, ids] += F.linear(part, rows_there.to(weight.dtype) - weight[ids]).float()
            log_probs = logits.log_softmax(-1)
            row, token = rows[before:after] - start, wanted[before:after]
            losses[order[before:after]] = -log_probs[row, token]
            correct += (logits.argmax(-1)[row] == token).sum()
            if gradient is not None:
                d_logits = log_probs.exp_().mul_(counts[start : start + chunk, None])
                d_logits.index_put_((row, token), d_logits.new_tensor(-1.0), accumulate=True)
                d_hidden = d_logits.to(weight.dtype) @ weight
                if ids is not None and rows_there is not None:
                    d_hidden += d_logits[:, ids].to(weight.dtype) @ (
                        rows_there.to(weight.dtype) - weight[ids]
                    )
                gradient[start : start + chunk] = d_hidden.float()
            before = after
        if gradient is not None:
            ctx.save_for_backward(gradient.div_(len(targets)))
            ctx.dtype = hidden.dtype
        ctx.mark_non_differentiable(losses, correct)
        return losses.mean(), losses, correct

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream).to(ctx.dtype), None, None, None, None, None, None, None


@dataclass(frozen=True)
class FrozenHead:
    """A head as it is computed with; nothing of it gets a gradient.

    Attributes:
        weight: (vocabulary, hidden).
        bias: (vocabulary,), or None.
        rows: vocabulary ids, int64 (n,), and what the head has there instead of its weight, (n, hidden).
    """

    weight: Tensor
    bias: Tensor | None = None
    rows: tuple[Tensor, Tensor] | None = None


def chunked_cross_entropy(
    hidden: Tensor, head: FrozenHead, logit_index: Tensor, targets: Tensor, chunk: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean negative log-likelihood of targets under `softmax(hidden @ weight.T + bias)`, in float32.

    Args:
        hidden: (positions, hidden), any floating dtype.
        head: makes logits of the positions.
        logit_index: int64 (labels,): target i is predicted by position `logit_index[i]`.
        targets: int64 (labels,), vocabulary ids.
        chunk: positions at a time; by default as many as keep the logits below `CHUNK_BYTES`.

    Returns:
        The mean (scalar, with graph), every target's own loss (labels,) and the number of targets that were
        the likeliest token, both without graph.
    """
    chunk = chunk or max(1, CHUNK_BYTES // (4 * len(head.weight)))
    ids, there = head.rows or (None, None)
    return _ChunkedLoss.apply(  # type: ignore[no-any-return]
        hidden, head.weight, head.bias, logit_index, targets, chunk, ids, there
    )


@torch.no_grad()
def head_is_last(model: nn.Module, head: nn.Module, inputs: dict[str, Any], predicting: Tensor) -> bool:
    """Whether the stock class returns what its head computes: some scale it or cap it behind the head.

    Args:
        model: possibly wrapped.
        head: of the Transformers model in it.
        inputs: of its forward.
        predicting: bool (rows, tokens), the positions that are looked at.

    Returns:
        True if it does.
    """
    logits, seen = _logits_and_head(model, head, inputs, predicting)
    scored = logits.numel() == int(predicting.sum()) * logits.shape[-1] == seen.numel()
    return scored and bool((logits.flatten() == seen.flatten()).all())


def head_is_returned(model: nn.Module, head: nn.Module, inputs: dict[str, Any], predicting: Tensor) -> bool:
    """As `head_is_last`, of a model without numbers: whether the very tensor is returned."""
    logits, seen = _logits_and_head(model, head, inputs, predicting)
    return logits.untyped_storage()._cdata == seen.untyped_storage()._cdata


def _logits_and_head(
    model: nn.Module, head: nn.Module, inputs: dict[str, Any], predicting: Tensor
) -> tuple[Tensor, Tensor]:
    """What the stock class returns, and what its head gave it."""
    seen: list[Tensor] = []
    handle = head.register_forward_hook(lambda module, given, made: seen.append(made))
    try:
        with training_autocast(model):
            logits = model(**inputs, **_kept(model, predicting), use_cache=False).logits
    finally:
        handle.remove()
    return logits, seen[-1]


def own_cross_entropy(
    model: nn.Module, inputs: dict[str, Any], predicting: Tensor, logit_index: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `chunked_cross_entropy`, on the logits that the stock class itself returns: all scored ones at once.

    Args:
        model: possibly wrapped.
        inputs: of its forward.
        predicting: bool (rows, tokens), the positions that are scored.
        logit_index: int64 (labels,), the scored position that predicts each target.
        targets: int64 (labels,).

    Returns:
        See `chunked_cross_entropy`.
    """
    with training_autocast(model):
        logits = model(**inputs, **_kept(model, predicting), use_cache=False).logits
    if logits.shape[:2] == predicting.shape:  # the class takes no mask of positions
        logits = logits[predicting]
    rows = logits.reshape(-1, logits.shape[-1]).float()[logit_index]
    losses = F.cross_entropy(rows, targets, reduction="none")
    return losses.mean(), losses.detach(), (rows.argmax(-1) == targets).sum()


def head_input(model: nn.Module, head: nn.Module, inputs: dict[str, Any], predicting: Tensor) -> Tensor:
    """What the stock class would feed its head at the positions that count, (positions, hidden), with graph.

    The whole model is called, wrappers included (DDP synchronises gradients in its forward), and the head is
    left with no position to do.
    """
    seen: list[Tensor] = []

    def take(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor]:
        seen.append(arguments[0])
        return (arguments[0][:0],)

    handle = head.register_forward_pre_hook(take)
    try:
        with training_autocast(model):
            model(**inputs, **_kept(model, predicting), use_cache=False)
    finally:
        handle.remove()
    # Some LLMs take no mask of positions, and hand their head all of them.
    return seen[0][predicting] if seen[0].shape[:2] == predicting.shape else seen[0]


def _kept(model: nn.Module, predicting: Tensor) -> dict[str, Tensor]:
    """The positions whose logits are needed, by the name that the class's forward has for them, if any."""
    if answers_apart(model):
        return {}
    return {architecture_of(model).logits_to_keep: predicting}
