"""Numbers that a report computes from predictions: intervals, confusions, what changed between two runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]
RESAMPLES = 1000
EXACT = ("vqa", "dialogue")
"""Kinds of objectives whose answers are right or wrong as texts."""


def interval(right: Sequence[bool], seed: int = 0) -> tuple[float, float, float]:
    """Share of right answers and its 95 % percentile-bootstrap interval (Efron, 1979).

    Args:
        right: of each answer.
        seed: of the resampling.

    Returns:
        Mean, 2.5th and 97.5th percentile of 1,000 resampled means; between 0 and 1.
    """
    values = np.asarray(right, dtype=np.float64)
    # Resampling answers that are right or wrong is drawing from a binomial distribution.
    drawn = np.random.default_rng(seed).binomial(len(values), values.mean(), RESAMPLES) / len(values)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(values.mean()), float(low), float(high)


def confusion(rows: Sequence[Row], answers: int = 8) -> tuple[list[str], list[list[int]]]:
    """Counts what was answered instead of what.

    Args:
        rows: predictions with `answer` and `truth`.
        answers: the most frequent true answers that are shown.

    Returns:
        The answers, and counts (true answer, given answer) with a last column for all others.
    """
    frequent = [answer for answer, _ in Counter(str(row["truth"]) for row in rows).most_common(answers)]
    column = {answer: number for number, answer in enumerate(frequent)}
    counts = [[0] * (len(frequent) + 1) for _ in frequent]
    for row in rows:
        if (truth := str(row["truth"])) in column:
            counts[column[truth]][column.get(row["answer"], len(frequent))] += 1
    return frequent, counts


def is_right(row: Row) -> bool:
    """Whether an answer is the expected text, but for case and outer spaces."""
    return str(row["answer"]).strip().casefold() == str(row["truth"]).strip().casefold()


def changed(first: Sequence[Row], second: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Finds samples that one run answers rightly and another does not.

    Args:
        first: predictions of a run.
        second: of another one, about some of the same rows.

    Returns:
        Rows that became right and rows that became wrong; each has `before`, the first run's answer.
    """
    known = {_key(row): row for row in first}
    better: list[Row] = []
    worse: list[Row] = []
    for row in second:
        before = known.get(_key(row))
        if before is not None and is_right(before) != is_right(row):
            (better if is_right(row) else worse).append({**row, "before": before["answer"]})
    return better, worse


def _key(row: Row) -> tuple[str, ...]:
    return str(row.get("objective")), str(row.get("where")), str(row.get("question"))
