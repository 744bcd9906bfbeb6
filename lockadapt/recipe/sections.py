"""Base of all recipe sections: number types, strict validation, and errors about contradictory values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0, le=1_000_000_000)]
Natural = Annotated[int, Field(ge=0, le=1_000_000_000)]
RowCount = Annotated[int, Field(gt=0, le=65_536)]
"""Rows or samples that stand in memory at a time."""
Width = Annotated[int, Field(gt=0, le=65_536)]
"""Numbers in a vector, or its rank."""
Tokens = Annotated[int, Field(gt=0, le=16_777_216)]
"""Tokens of a sample or a row."""
Weight = Annotated[float, Field(ge=1e-9, le=1e9)]
"""A share or factor: within these bounds sums and quotients of them stay finite."""
Epochs = Annotated[float, Field(gt=0, le=100_000)]
Gibibytes = Annotated[float, Field(gt=0, le=1_000_000)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0)]
Text = Annotated[str, Field(min_length=1)]
KeyPath = tuple[str | int, ...]


class InconsistentError(ValueError):
    """Values that are each valid but contradict one another.

    `problems` are (key path below the section that was checked, what is wrong) pairs, so that the reader of a
    recipe can point at the line of each.
    """

    def __init__(self, problems: Sequence[tuple[KeyPath, str]]) -> None:
        self.problems = tuple(problems)
        super().__init__(
            "; ".join(".".join(map(str, path)) + ": " * bool(path) + text for path, text in problems)
        )


class Section(BaseModel):
    """Base of all recipe sections: unknown keys are errors, values are never converted from other types."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False
    )


# Objective and stage names become folder names and keys of metrics.
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
NAME_RULE = "a name is a letter and up to 63 letters, digits, `-` or `_`"


def refuse(problems: Sequence[tuple[KeyPath, str]]) -> None:
    """Raise `InconsistentError` if there are problems."""
    if problems:
        raise InconsistentError(problems)
