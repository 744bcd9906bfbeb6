"""Late interaction (ColBERT, arXiv 2004.12832): similarity of things whose tokens all have embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_BYTES = 64 * 2**20
"""Float32 similarities of tokens that exist at a time."""


def maxsim(queries: Tensor, candidates: Tensor) -> Tensor:
    """Mean over a query's tokens of the largest cosine with a token of the candidate, without graph.

    `ColPaliProcessor.score_retrieval` sums where this takes the mean, so that scores are cosines and texts of
    different lengths compare; the order of candidates of one query is the same.

    Args:
        queries: L2-normalised vectors of tokens, float32 (queries, tokens, size); padding is zeros.
        candidates: the same, (candidates, tokens, size).

    Returns:
        Float32 (queries, candidates), in -1..1.
    """
    return best_tokens(queries, candidates)[0]


@torch.no_grad()
def best_tokens(queries: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """As `maxsim`, and which token it was.

    Args:
        queries: see `maxsim`.
        candidates: see `maxsim`.

    Returns:
        The scores; and int64 (queries, candidates, tokens of a query), numbers of the candidates' tokens.
    """
    (count, tokens, size), others = queries.shape, len(candidates)
    scores = queries.new_empty(count, others)
    best = torch.empty(count, others, tokens, dtype=torch.int64, device=queries.device)
    weights, real = token_weights(queries), candidates.abs().amax(-1) > 0
    rows = max(1, BLOCK_BYTES // (4 * max(1, count * tokens * candidates.shape[1])))
    for start in range(0, others, rows):
        part = candidates[start : start + rows]
        cosines = queries.reshape(-1, size) @ part.reshape(-1, size).T
        cosines = cosines.view(count, tokens, len(part), -1)
        cosines = cosines.masked_fill(~real[start : start + rows], -torch.inf)
        largest, number = cosines.max(-1)
        scores[:, start : start + rows] = (weights[..., None] * largest).sum(1)
        best[:, start : start + rows] = number.transpose(1, 2)
    return scores, best


def token_weights(queries: Tensor) -> Tensor:
    """What each token counts in the mean: one over the tokens of its row, padding nothing; (rows, tokens)."""
    real = (queries.abs().amax(-1) > 0).to(queries.dtype)
    return real / real.sum(1, keepdim=True).clamp(min=1)
