"""How unusable rows are told: untrusted text quoted, many problems of one file gathered into one error."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

from lockadapt.errors import DataError, SafetyError

MOST_PROBLEMS = 20
"""Problems of one file that are gathered before the reading stops (a count)."""

ROW_ERRORS = (DataError, SafetyError)
"""What a single row or image may be refused with."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200


def quote(value: Any) -> str:
    """A value from a row as it may stand in a message: one line, cut, control characters escaped."""
    return _SHORT.repr(value)


class Problems:
    """The problems of one file, raised together.

    Args:
        file: the file as the user wrote it.
        things: what is refused, in the plural, e.g. "rows".
    """

    def __init__(self, file: str, things: str = "rows") -> None:
        self.file, self.things = file, things
        self.errors: list[DataError | SafetyError] = []

    def add(self, error: DataError | SafetyError) -> None:
        """Keep one problem; the last that is kept raises them all."""
        self.errors.append(error)
        if len(self.errors) >= MOST_PROBLEMS:
            self.raise_any()

    def raise_any(self) -> None:
        """Raise what was gathered, if anything.

        Raises:
            SafetyError: if one of the problems is one.
            DataError: otherwise.
        """
        if self.errors:
            raise merged(self.errors, self.file, self.things)


def merged(
    errors: Sequence[DataError | SafetyError], file: str | None, things: str
) -> DataError | SafetyError:
    """Merge errors into one that says all they say; a single one keeps its own place and fix.

    Args:
        errors: at least one.
        file: what all places lie in, if it is one file.
        things: what is refused, in the plural.

    Returns:
        The error to raise: a SafetyError where one of them is.
    """
    kind: type[DataError] | type[SafetyError] = DataError
    if any(isinstance(error, SafetyError) for error in errors):
        kind = SafetyError
    if len(errors) == 1:
        (only,) = errors
        place = "" if file is None or file in (only.where or "") else f" (in {file})"
        return kind(only.message + place, where=only.where, fix=only.fix)
    count = f"{len(errors)} {things} cannot be used"
    if len(errors) >= MOST_PROBLEMS:
        count = f"the first {len(errors)} {things} that cannot be used (there may be more)"
    lines = [f"{error.where}: {error.message}" for error in errors]
    fixes = list(dict.fromkeys(error.fix for error in errors if error.fix))[:3]
    return kind("\n  ".join([f"{count}:", *lines]), where=file, fix="; ".join(fixes) or None)
