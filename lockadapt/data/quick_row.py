"""A row as token ids and labels, before anything is cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

IGNORED = -100
"""Label of a position that is not learned (PyTorch's `cross_entropy` default)."""


@dataclass(eq=False, slots=True)
class QuickRow:
    """An encoded row, before anything is cut.

    Attributes:
        input_ids, labels: int32 (tokens,).
        merged: how many answers begin inside of a token.
        image_end: the place behind the last image token, 0 without images.
        sure: it has labels, and none is the token for unknown pieces.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    merged: int
    image_end: int
    sure: bool

    def equals(self, other: QuickRow) -> bool:
        """Whether two ways led to the same."""
        return (
            np.array_equal(self.input_ids, other.input_ids)
            and np.array_equal(self.labels, other.labels)
            and (self.merged, self.image_end) == (other.merged, other.image_end)
        )
