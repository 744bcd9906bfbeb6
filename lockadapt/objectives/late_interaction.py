"""Contrastive losses on late interaction: every token of an image and of a text has an embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lockadapt.errors import DataError
from lockadapt.metrics.late_interaction import best_tokens, token_weights
from lockadapt.objectives.gather import gather
from lockadapt.objectives.similarity import Contrast, belonging


def late_loss(
    images: Tensor, texts: Tensor, image_keys: Tensor, text_keys: Tensor, contrast: Contrast
) -> Tensor:
    """The losses of `contrastive_loss` with MaxSim of a text's tokens over an image's in place of the cosine.

    Args:
        images: L2-normalised embeddings of tokens, (images, tokens, size), any floating dtype; padding is
            zeros.
        texts: the same of texts, (texts, tokens, size).
        image_keys: int64 (images, columns), see `contrastive_loss`.
        text_keys: int64 (texts, columns).
        contrast: the loss, its scale and its bias.

    Returns:
        A scalar, with graph to images, texts, scale and bias.

    Raises:
        DataError: nothing belongs together.
    """
    positive = belonging(image_keys, text_keys).float()
    if not positive.any():
        raise DataError(
            "no image belongs to any text of the batch, so there is nothing to learn from",
            where="contrastive loss",
            fix="give an image and its texts the same key",
        )
    with torch.autocast(images.device.type, enabled=False):
        logits = _MaxSim.apply(texts.float(), images.float()).T * contrast.scale.float()
        if contrast.kind == "infonce":
            return (_cross_entropy(logits, positive) + _cross_entropy(logits.T, positive.T)) / 2
        if contrast.bias is not None:
            logits = logits + contrast.bias.float()
        return -F.logsigmoid(logits * (2 * positive - 1)).sum() / max(logits.shape)


def gathered_tokens(embeddings: Tensor) -> Tensor:
    """Gathers every process's rows, see `gather`; all are padded to the longest.

    Args:
        embeddings: (rows, tokens, size).

    Returns:
        (rows of all processes, tokens of the longest, size).
    """
    lengths = gather(torch.tensor([embeddings.shape[1]], device=embeddings.device))
    return gather(_padded(embeddings, int(lengths.max())))


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Puts embeddings below one another; those of tokens are padded with zeros to the longest.

    Args:
        parts: (rows, size) each, or (rows, tokens, size).

    Returns:
        (all rows, size), or (all rows, tokens, size).
    """
    if parts[0].ndim == 2:
        return torch.cat(list(parts))
    longest = max(part.shape[1] for part in parts)
    return torch.cat([_padded(part, longest) for part in parts])


def _padded(part: Tensor, tokens: int) -> Tensor:
    return F.pad(part, (0, 0, 0, tokens - part.shape[1]))


def _cross_entropy(logits: Tensor, positive: Tensor) -> Tensor:
    """Mean over rows to which something belongs, targets uniform over what does."""
    counts = positive.sum(1)
    targets = positive / counts.clamp(min=1)[:, None]
    losses = -(targets * logits.log_softmax(1)).sum(1)
    return losses.sum() / (counts > 0).sum()


class _MaxSim(torch.autograd.Function):
    """See `maxsim`; a token's gradient comes from the token that it is most similar to, and goes there."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, candidates: Tensor) -> Tensor:  # type: ignore[override]
        scores, best = best_tokens(queries, candidates)
        ctx.save_for_backward(queries, candidates, best)
        return scores

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        queries, candidates, best = ctx.saved_tensors
        weights, size = token_weights(queries), queries.shape[-1]
        d_queries, d_candidates = torch.zeros_like(queries), torch.zeros_like(candidates)
        for number, candidate in enumerate(candidates):
            share = (upstream[:, number, None] * weights)[..., None]
            chosen = best[:, number]
            d_queries += share * candidate[chosen]
            d_candidates[number].index_add_(0, chosen.flatten(), (share * queries).view(-1, size))
        return d_queries, d_candidates
