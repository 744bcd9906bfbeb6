"""A codebook of directions, learned as moving averages of what falls on each entry; idle entries restart."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

KMEANS_ROUNDS = 10
IDLE_SHARE = 0.03
"""A code that gets less than this share of an equal share is idle."""


class Codebook:
    """Keeps an embedding table's rows at the mean directions of the vectors nearest to them (of length 1).

    The moving averages are those of VQ-VAE (arXiv 1711.00937, appendix A.1), on the sphere; restarts of idle
    entries from vectors of the batch are those of Jukebox (arXiv 2005.00341, section 3).

    Args:
        table: (codebook size, width), changed in place; gets no gradient.
        generator: draws starting points and restarts.
        decay: of the moving averages at every step.
    """

    def __init__(self, table: Tensor, generator: torch.Generator, decay: float = 0.97) -> None:
        self.table, self.generator, self.decay = table, generator, decay
        self.sums = torch.zeros_like(table)
        self.counts = torch.zeros(len(table), dtype=table.dtype, device=table.device)

    @torch.no_grad()
    def start(self, vectors: Tensor) -> None:
        """Places the entries by spherical k-means on unit vectors (many, width)."""
        entries = len(self.table)
        centres = self._pick(vectors, entries)
        for _ in range(KMEANS_ROUNDS):
            owner = nearest(vectors, centres)
            sums = torch.zeros_like(centres).index_add_(0, owner, vectors)
            empty = torch.bincount(owner, minlength=entries) == 0
            sums[empty] = self._pick(vectors, int(empty.sum()))
            centres = F.normalize(sums, dim=1)
        self.table.copy_(centres)
        self.sums.copy_(centres)
        self.counts.fill_(1.0)

    @torch.no_grad()
    def update(self, vectors: Tensor, owner: Tensor, *, revive: bool) -> int:
        """Takes one step of the moving averages; with `revive` idle entries restart at vectors of this batch.

        Args:
            vectors: unit vectors (many, width) of a batch.
            owner: the entries nearest to them, int64 (many,).
            revive: whether idle entries restart; not in the last steps, so that what the decoder reads
                settles.

        Returns:
            How many entries restarted.
        """
        keep = self.decay
        counts = torch.bincount(owner, minlength=len(self.table)).to(self.counts)
        self.counts.mul_(keep).add_(counts, alpha=1 - keep)
        self.sums.mul_(keep).add_(torch.zeros_like(self.sums).index_add_(0, owner, vectors), alpha=1 - keep)
        idle = self.counts < IDLE_SHARE * len(vectors) / len(self.table)
        restarted = int(idle.sum()) if revive else 0
        if restarted:
            self.sums[idle] = self._pick(vectors, restarted)
            self.counts[idle] = 1.0
        self.table.copy_(F.normalize(self.sums, dim=1))
        return restarted

    def _pick(self, vectors: Tensor, number: int) -> Tensor:
        # Cheaper than a permutation, and a code that starts twice at the same place restarts as soon as it is
        # idle.
        chosen = torch.randint(len(vectors), (number,), generator=self.generator)
        return vectors[chosen.to(vectors.device)]


def nearest(vectors: Tensor, table: Tensor) -> Tensor:
    """The most alike row of a table of unit rows for every vector (many, width): int64 (many,)."""
    return (vectors @ table.T).argmax(dim=1)


def perplexity(counts: Tensor) -> float:
    """exp of the entropy of how often entries were used: how many are in use, each counted by its use."""
    share = counts.double() / counts.sum().clamp_min(1)
    return float(torch.exp(-torch.special.xlogy(share, share).sum()))
