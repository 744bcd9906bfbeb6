"""CIDEr-D of captions, as pycocoevalcap computes it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lockadapt.metrics.ngrams import NGrams, count_ngrams
from lockadapt.metrics.pairs import check_pairs

Tokens = Sequence[str]
ORDER, SIGMA = 4, 6.0


def cider_d(
    candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]], rarity: Rarity | None = None
) -> list[float]:
    """Compute the CIDEr-D of each item; the published score is their mean (often printed times 100).

    Words are weighed by how few items' references hold them, so the score of an item depends on the set it is
    scored in; in a set of one item every weight, and the score, is 0.

    Args:
        candidates: tokens of one caption an item.
        references: tokens of every accepted caption of the same item.
        rarity: of words in another set, which then weighs them; default: that of `references`.

    Returns:
        One score an item, in 0..10.

    Raises:
        DataError: lengths differ, nothing to score, or an item without references.

    Source: Vedantam et al. 2015; pycocoevalcap `Cider` (clipped counts, Gaussian length penalty).
    """
    check_pairs(candidates, references)
    rarity = rarity or Rarity(references)
    scores = []
    for candidate, accepted in zip(candidates, references, strict=True):
        own = _vector(candidate, rarity)
        total = sum(_similarity(own, _vector(reference, rarity)) for reference in accepted)
        scores.append(10 * total / len(accepted))
    return scores


class Rarity:
    """The logarithm of (items / items whose references hold the n-gram).

    Args:
        references: tokens of every accepted caption of each item of a set.
    """

    def __init__(self, references: Sequence[Sequence[Tokens]]) -> None:
        self.items: NGrams = Counter()
        for accepted in references:
            self.items.update(
                {
                    ngram
                    for reference in accepted
                    for n in range(ORDER)
                    for ngram in count_ngrams(reference, n + 1)
                }
            )
        self.log_count = math.log(len(references))

    def __call__(self, ngram: tuple[str, ...]) -> float:
        """The weight of an n-gram."""
        return self.log_count - math.log(max(1, self.items[ngram]))


@dataclass(frozen=True)
class _Vector:
    weights: list[dict[tuple[str, ...], float]]
    norms: list[float]
    length: int


def _vector(tokens: Tokens, rarity: Rarity) -> _Vector:
    weights = [
        {ngram: count * rarity(ngram) for ngram, count in count_ngrams(tokens, n + 1).items()}
        for n in range(ORDER)
    ]
    norms = [math.sqrt(sum(weight**2 for weight in group.values())) for group in weights]
    return _Vector(weights, norms, len(tokens))


def _similarity(candidate: _Vector, reference: _Vector) -> float:
    """Mean over n of the clipped cosine, times the length penalty."""
    total = 0.0
    for own, other, norm, other_norm in zip(
        candidate.weights, reference.weights, candidate.norms, reference.norms, strict=True
    ):
        if norm and other_norm:
            product = sum(
                min(weight, other.get(ngram, 0.0)) * other.get(ngram, 0.0) for ngram, weight in own.items()
            )
            total += product / (norm * other_norm)
    penalty = math.exp(-((candidate.length - reference.length) ** 2) / (2 * SIGMA**2))
    return total / ORDER * penalty
