"""How unusable rows are told: untrusted text quoted, many problems of one file gathered into one error."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class BadRows:
    """Permission to leave bad rows out.

    Attributes:
        max_fraction: the largest share of the rows that may be bad.
        note: is told which rows were left out, and why.
    """

    max_fraction: float
    note: Callable[[str], None]


class Problems:
    """The problems of one file, raised together.

    Args:
        file: the file as the user wrote it.
        things: what is refused, in the plural, e.g. "rows".
        skip: rows that are no matter of safety may be left out, within its limit; None: none may.
    """

    def __init__(self, file: str, things: str = "rows", skip: BadRows | None = None) -> None:
        self.file, self.things, self.skip = file, things, skip
        self.errors: list[DataError | SafetyError] = []
        self.count = 0

    def add(self, error: DataError | SafetyError) -> None:
        """Keep one problem; the last that is kept raises them all, unless such rows may be left out."""
        self.count += 1
        if self.skip is not None and not isinstance(error, SafetyError):
            if len(self.errors) < MOST_PROBLEMS:
                self.errors.append(error)
            return
        self.errors.append(error)
        if self.skip is None and len(self.errors) >= MOST_PROBLEMS:
            self.raise_any()

    def finish(self, good: int) -> None:
        """Raise what was gathered, or say what is left out, once every row was tried.

        Args:
            good: samples that came of the other rows.

        Raises:
            SafetyError: if one of the problems is one.
            DataError: rows may not be left out, more than the largest share of them is bad, or none is good.
        """
        if (
            not self.errors
            or self.skip is None
            or any(isinstance(error, SafetyError) for error in self.errors)
        ):
            self.raise_any()
            return
        share = self.count / (self.count + good)
        lines = "\n  ".join(_grouped(self.errors))
        if share > self.skip.max_fraction or not good:
            raise DataError(
                f"{self.count:,} of {self.count + good:,} {self.things} cannot be used:\n  {lines}",
                where=self.file,
                fix=f"correct them, or raise `data.max_bad_row_fraction` (now {self.skip.max_fraction:g})",
            )
        self.skip.note(
            f"{self.file}: left out {self.count:,} of {self.count + good:,} {self.things}:\n  {lines}"
        )

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
        suffix = "" if file is None or file in (only.where or "") else f" (in {file})"
        return kind(only.message + suffix, where=only.where, fix=only.fix)
    count = f"{len(errors)} {things} cannot be used"
    if len(errors) >= MOST_PROBLEMS:
        count = f"the first {len(errors)} {things} that cannot be used (there may be more)"
    lines = _grouped(errors)
    fixes = list(dict.fromkeys(error.fix for error in errors if error.fix))[:3]
    return kind("\n  ".join([f"{count}:", *lines]), where=file, fix="; ".join(fixes) or None)


_SHOWN_OF_A_KIND = 3
_VALUE = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")


def _grouped(errors: Sequence[DataError | SafetyError]) -> list[str]:
    """A line for each of the first problems of a kind, and one for all the others of it."""
    kinds: dict[str, list[DataError | SafetyError]] = {}
    for error in errors:
        kinds.setdefault(_VALUE.sub("…", error.message), []).append(error)
    lines: list[str] = []
    for alike in kinds.values():
        shown = alike if len(alike) == _SHOWN_OF_A_KIND + 1 else alike[:_SHOWN_OF_A_KIND]
        lines += [f"{error.where}: {error.message}" for error in shown]
        if len(alike) > len(shown):
            lines.append(f"… and {len(alike) - len(shown)} more of this kind, up to {alike[-1].where}")
    return lines
