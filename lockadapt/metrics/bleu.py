"""BLEU-1 to BLEU-4 of a whole set of captions, as pycocoevalcap computes it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lockadapt.metrics.ngrams import NGrams, count_ngrams
from lockadapt.metrics.pairs import check_pairs

Tokens = Sequence[str]
# pycocoevalcap's guards against 0 / 0, kept so that even a set without any match scores the same.
_TINY, _SMALL = 1e-15, 1e-9


def corpus_bleu(
    candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]], order: int = 4
) -> list[float]:
    """Compute BLEU-1 to BLEU-`order`: geometric mean of clipped precisions times the brevity penalty.

    Counts are summed over the set before dividing, so this is not a mean over captions. The length compared
    with is, for each caption, the reference's closest to it (the shorter of two equally close).

    Args:
        candidates: tokens of one caption an item.
        references: tokens of every accepted caption of the same item.
        order: the longest n-gram, in tokens.

    Returns:
        One score for each n-gram length, each in 0..1.

    Raises:
        DataError: lengths differ, nothing to score, or an item without references.

    Source: Papineni et al. 2002; pycocoevalcap `Bleu` with option "closest".
    """
    check_pairs(candidates, references)
    matched, proposed = [0] * order, [0] * order
    length = reference_length = 0
    for candidate, accepted in zip(candidates, references, strict=True):
        length += len(candidate)
        reference_length += min(
            (abs(len(reference) - len(candidate)), len(reference)) for reference in accepted
        )[1]
        for n in range(order):
            counts = count_ngrams(candidate, n + 1)
            matched[n] += (counts & _most_often(accepted, n + 1)).total()
            proposed[n] += counts.total()
    ratio = (length + _TINY) / (reference_length + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in range(order):
        product *= (matched[n] + _TINY) / (proposed[n] + _SMALL)
        scores.append(product ** (1 / (n + 1)) * penalty)
    return scores


def _most_often(references: Sequence[Tokens], order: int) -> NGrams:
    """How often each n-gram occurs in the reference that has most of it."""
    most: NGrams = NGrams()
    for reference in references:
        most |= count_ngrams(reference, order)
    return most
