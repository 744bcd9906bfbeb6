"""The change of a score on the same items, with its 95 % interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lockadapt.errors import DataError

RESAMPLES = 2000


def paired_change(before: Sequence[float], after: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """Mean scores of the same items before and after, and the 95 % interval of their difference.

    Items are resampled with replacement, both scores of an item together (paired percentile bootstrap; Efron
    and Tibshirani 1993).

    Args:
        before: a score an item.
        after: in the same order.
        seed: of the resampling.

    Returns:
        `{"before", "after", "low", "high", "n"}`; `low` and `high` are of the difference.

    Raises:
        DataError: no item, or not as many scores after as before.
    """
    first, second = (np.asarray(scores, dtype=np.float64) for scores in (before, after))
    if len(first) != len(second) or not len(first):
        raise DataError(f"{len(first)} scores before and {len(second)} after", where="scoring")
    change, random = second - first, np.random.default_rng(seed)
    drawn = [change[random.integers(0, len(change), len(change))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return {
        **{"before": float(first.mean()), "after": float(second.mean())},
        **{"low": float(low), "high": float(high), "n": len(change)},
    }
