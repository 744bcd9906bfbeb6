"""One cell of a row: found by name or position, checked to be usable text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lockadapt.data.boxes import BoxRules
from lockadapt.data.problems import quote
from lockadapt.data.readers.pictures import Pictures
from lockadapt.data.readers.source import IMAGE_MARK, Source, did_you_mean
from lockadapt.data.video import VideoRules
from lockadapt.errors import DataError

LONGEST_TEXT = 1_000_000
"""Characters of one text; a tokenizer takes hundreds of bytes for each."""
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)*%?")


class Absent:
    """What `cell` gives for a column that a row does not have (it may have it and hold null)."""


@dataclass(frozen=True)
class RowRules:
    """How the rows of one source are understood; checked once a file.

    `marks`: `<image>` in text is a marker. `boxes`: how boxes are given and written; `sizes`: width and
    height of images that were looked at, by key, None where an image cannot be read. `video`: which frames
    are taken; `seconds`: how long the videos are that were looked at, by key.
    """

    kind: str
    columns: Mapping[str, str | int]
    prompt: str | None
    pictures: Pictures
    expand: bool = True
    marks: bool = False
    boxes: BoxRules = field(default_factory=BoxRules)
    sizes: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    video: VideoRules = field(default_factory=VideoRules)
    seconds: dict[str, float] = field(default_factory=dict)

    def forget(self) -> None:
        """Let go of what was kept of images and videos; they are looked at again where they are named."""
        self.pictures.forget()
        self.sizes.clear()
        self.seconds.clear()


def rules_for(
    source: Source, pictures: Pictures, defaults: Mapping[str, str] | None = None, marks: bool = False
) -> RowRules:
    """Make the rules by which a source's rows become samples.

    Args:
        source: kind, columns and prompt.
        pictures: turns image values into `ImageRef`s.
        defaults: the format's own columns, which `source.columns` override.
        marks: whether `<image>` in a text stands for an image.

    Returns:
        The rules.

    Raises:
        RecipeError: as `Source.check`.
    """
    source.check()
    columns = {**(defaults or {}), **source.columns}
    rules = RowRules(source.kind, columns, source.prompt, pictures, source.expand, marks, source.boxes)
    return replace(rules, video=source.video)


def cell(row: Any, field: str, rules: RowRules, where: str, optional: bool = False) -> Any:
    """Look up the value of a sample field.

    Args:
        row: a mapping or a list.
        field: name of the sample's field.
        rules: which columns hold which field.
        where: the row's place, for messages.
        optional: whether a column that the user named may be missing.

    Returns:
        The value, or `Absent`.

    Raises:
        DataError: `columns` names a column that the row lacks (unless `optional`), or maps a list by name.
    """
    column = rules.columns.get(field)
    if isinstance(row, dict):
        value = row.get(field if column is None else column, Absent)
        if value is Absent and column is not None and not optional:
            raise missing_column(row, str(column), field, where)
        return value
    if column is None:
        return Absent
    if isinstance(column, str):
        raise DataError(
            f"the row is a list, but `columns.{field}` is the name {column!r}",
            where=where,
            fix=f"give its position, counted from 0: `columns: {{{field}: 0}}`",
        )
    if column >= len(row):
        raise DataError(
            f"the row has {len(row)} values, and {field} is position {column} (counted from 0)",
            where=where,
            fix="fix the row or `columns`",
        )
    return row[column]


def missing_column(row: Any, column: str, field: str, where: str) -> DataError:
    """The error for a row without a column: what it has instead, and how to map it."""
    if not isinstance(row, dict):
        if row and isinstance(row[0], dict):
            return DataError(
                "the line holds a list of rows, not one row",
                where=where,
                fix="name the file .json, or write one row a line",
            )
        return DataError(
            f"the row is a list, and nothing says which of its {len(row)} values is the {field}",
            where=where,
            fix=f"give the position, counted from 0: `columns: {{{field}: 0}}`",
        )
    names = [str(name) for name in row][:20]
    guess = did_you_mean(column, names)
    if not guess.startswith("did"):
        guess = "map a column that it has"
    if len(names) == 1 and (";" in names[0] or "\t" in names[0]):
        guess = "values are separated by commas (in .tsv files by tabs); fix the file, or map a column"
    return DataError(
        f"the row has no column {column!r}; it has {quote(', '.join(names)) if names else 'none'}",
        where=where,
        fix=f"{guess} (`columns: {{{field}: ...}}` says which column is the {field})",
    )


def clean_text(value: Any, what: str, where: str) -> str:
    """Check a text, and strip white space from its ends.

    Args:
        value: what stands in the row, unchecked.
        what: its name, for messages.
        where: the row's place, for messages.

    Returns:
        The text, never empty.

    Raises:
        DataError: not text, empty, holding the literal `<image>`, or a lone surrogate, which no tokenizer
            takes.
    """
    if type(value) is not str:
        if value is None:
            raise DataError(f"the {what} is null", where=where, fix=f"write the {what}, or remove the row")
        kind = type(value).__name__
        raise DataError(
            f"the {what} is {quote(value)} ({kind}), not text", where=where, fix="write it as text, in quotes"
        )
    text = value.strip()
    if len(text) > LONGEST_TEXT:
        raise DataError(
            f"the {what} has {len(text):,} characters, more than {LONGEST_TEXT:,}",
            where=where,
            fix="split it over several rows, or remove the row",
        )
    if not text:
        raise DataError(f"the {what} is empty", where=where, fix=f"write the {what}, or remove the row")
    if IMAGE_MARK in text:
        raise DataError(
            f"the {what} holds the literal {IMAGE_MARK}, which would be taken for an image",
            where=where,
            fix=f"remove it: images come from the image column ({IMAGE_MARK} marks them in the llava "
            "format only)",
        )
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"the {what} holds a lone surrogate, which is no character",
                where=where,
                fix="write the file again with correct Unicode",
            ) from None
    return text


def answer_text(value: Any, what: str, where: str) -> str:
    """As `clean_text`; whole numbers are taken too, as counts often stand unquoted."""
    return str(value) if type(value) is int else clean_text(value, what, where)


def text_list(value: Any, what: str, where: str, check: Callable[[Any, str, str], str]) -> tuple[str, ...]:
    """A non-empty list of answers or captions, each a text or `{what: text}`, after `check`."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or not value:
        raise DataError(
            f"the {what}s are {quote(value)}, not a list with texts in it",
            where=where,
            fix=f"write a list, or map one text: `columns: {{{what}: ...}}`",
        )
    plain = [item.get(what) if isinstance(item, Mapping) else item for item in value]
    return tuple(check(item, what, where) for item in plain)


def answer_type_of(answer: str) -> str:
    """The group of an answer as VQA v2 names them: "yes/no", "number" or "other"."""
    plain = answer.strip().rstrip(".").lower()
    if plain in ("yes", "no"):
        return "yes/no"
    return "number" if _NUMBER.fullmatch(plain) else "other"
