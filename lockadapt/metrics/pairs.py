"""Refuses predictions and references that do not belong together, before a score is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lockadapt.errors import DataError


def check_pairs(predictions: Sequence[Any], references: Sequence[Any]) -> None:
    """Check that there is a prediction, and that every prediction has at least one reference.

    Args:
        predictions: one an item.
        references: every accepted text of the same item.

    Raises:
        DataError: nothing to score, different lengths, a prediction without references, or references that
            are one string instead of a list of strings.
    """
    if len(predictions) != len(references):
        raise DataError(
            f"{len(predictions)} predictions for {len(references)} lists of references",
            where="scoring",
            fix="give one list of references for each prediction, in the same order",
        )
    if not predictions:
        raise DataError("there is nothing to score", where="scoring", fix="give at least one prediction")
    for row, accepted in enumerate(references):
        if isinstance(accepted, str):
            raise DataError(
                f"the references are one string, {accepted!r}, where a list is expected",
                where=f"row {row} (counted from 0)",
                fix="wrap a single reference in a list",
            )
        if not accepted:
            raise DataError(
                "no reference to compare with",
                where=f"row {row} (counted from 0)",
                fix="give the row an answer or a caption, or leave it out of the evaluation",
            )
