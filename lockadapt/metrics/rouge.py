"""ROUGE-L of captions, as pycocoevalcap computes it."""

from __future__ import annotations

from collections.abc import Sequence

from lockadapt.metrics.pairs import check_pairs

Tokens = Sequence[str]
BETA = 1.2


def rouge_l(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """Compute the ROUGE-L of each item; the published score is their mean.

    F-measure, with recall weighing `BETA` times as much, of the longest common subsequence. The best
    precision and the best recall may come from different references.

    Args:
        candidates: tokens of one caption an item.
        references: tokens of every accepted caption of the same item.

    Returns:
        One score an item, in 0..1.

    Raises:
        DataError: lengths differ, nothing to score, or an item without references.

    Source: Lin 2004; pycocoevalcap `Rouge`.
    """
    check_pairs(candidates, references)
    return [_score(candidate, accepted) for candidate, accepted in zip(candidates, references, strict=True)]


def _score(candidate: Tokens, references: Sequence[Tokens]) -> float:
    # The official code splits "" into one empty word: nothing against nothing is a match.
    candidate = candidate or [""]
    common = [
        (_common_length(candidate, reference or [""]), len(reference or [""])) for reference in references
    ]
    precision = max(length for length, _ in common) / len(candidate)
    recall = max(length / size for length, size in common)
    if not precision:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common_length(first: Tokens, second: Tokens) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for token in first:
        diagonal = 0
        for j, other in enumerate(second):
            above = row[j + 1]
            row[j + 1] = diagonal + 1 if token == other else max(above, row[j])
            diagonal = above
    return row[-1]
