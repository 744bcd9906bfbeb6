"""Counts runs of words, for the scores that compare them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

NGrams = Counter[tuple[str, ...]]


def count_ngrams(tokens: Sequence[str], order: int) -> NGrams:
    """How often each run of exactly `order` tokens occurs; empty when there are fewer tokens."""
    return Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))
