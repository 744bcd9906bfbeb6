"""Rows of a file of JSON lines that stay on disk: each is read and checked when it is asked for."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from lockadapt.data.line_index import LineIndex, Lines, open_index
from lockadapt.data.order import Array, epoch_order
from lockadapt.data.problems import ROW_ERRORS, Problems
from lockadapt.data.readers.columns import RowRules
from lockadapt.data.readers.files import LINE_SUFFIXES, parsed_line
from lockadapt.data.readers.rows import samples_of
from lockadapt.data.readers.source import Source
from lockadapt.data.sample import Sample
from lockadapt.data.sources import NextRow, SourceDraw, one_by_one
from lockadapt.data.stored import StoredRows

LOOKED_AT = 2_000
"""Rows that are read before step 1, and stand for all of them where something is estimated."""

FIRST = 100
"""Of those, so many say whether rows hold several samples."""

_AT_ONCE = 4096
"""Rows of an order that are taken out of its file at a time."""

SPREAD = 3.0
"""Standard deviations by which the share of bad rows among those may exceed what is allowed."""


class TableFile(Protocol):
    """A file of JSON lines, and what its lines hold."""

    @property
    def source(self) -> Source:
        """That a recipe names."""
        ...

    @property
    def lines(self) -> Lines:
        """The file, with the column that groups its rows."""
        ...

    def where(self, line: bytes, number: int) -> str:
        """The place of a line, counted from 1, for messages."""
        ...

    def samples(self, line: bytes, number: int) -> list[Sample]:
        """The samples of a line; raises what is wrong with it."""
        ...

    def forget(self) -> None:
        """Lets go of what is kept of images that were named."""
        ...


@dataclass(frozen=True)
class RowFile:
    """A user's own file of rows.

    Attributes:
        source: of the rows.
        rules: by which a row becomes samples.
    """

    source: Source
    rules: RowRules

    @property
    def lines(self) -> Lines:
        """The file, with the column that groups its rows."""
        column = self.rules.columns.get("image", "image")
        grouping = None if self.source.kind == "text" or not isinstance(column, str) else column
        return Lines.of(Path(self.source.path), grouping, self.source.limit)

    def where(self, line: bytes, number: int) -> str:
        """The file and the line."""
        return f"{Path(self.source.path).name}:{number}"

    def samples(self, line: bytes, number: int) -> list[Sample]:
        """What a reader makes of the row."""
        where = self.where(line, number)
        return samples_of(parsed_line(line, where), self.rules, where)

    def forget(self) -> None:
        """Lets go of what is kept of images that were named."""
        self.rules.forget()


def may_stay_on_disk(source: Source) -> bool:
    """Whether a source's rows can be read one by one: it is a plain file of JSON lines."""
    path = Path(source.path)
    return path.suffix.lower() in LINE_SUFFIXES and path.is_file() and path.stat().st_size > 0


def has_more_lines(file: Path, few: int) -> bool:
    """Whether a file has more lines than a few; it is read as far as that takes."""
    return _holds_more(file, (b"\n",), few - 1)


def may_have_more_rows(file: Path, few: int) -> bool:
    """Whether a file of JSON may have more rows than a few, each of which begins with a bracket."""
    return _holds_more(file, (b"{", b"["), few)


def _holds_more(file: Path, marks: tuple[bytes, ...], few: int) -> bool:
    count = 0
    with file.open("rb") as opened:
        while count <= few and (part := opened.read(1 << 20)):
            count += sum(part.count(mark) for mark in marks)
    return count > few


class Table(StoredRows):
    """Rows of a file on disk, as samples.

    Args:
        file: the file, and how its rows are read.
        cache: the folder of indexes.
        seed: which rows are looked at before step 1.

    Raises:
        LockadaptError: as `open_index`.
    """

    def __init__(self, file: TableFile, cache: Path, seed: int = 0) -> None:
        self.file, self.source, self.seed = file, file.source, seed
        self.lines: LineIndex = open_index(file.lines, cache)

    def __len__(self) -> int:
        return len(self.lines)

    def samples(self, row: int) -> list[Sample]:
        """What a row holds."""
        return self.file.samples(self.lines.line(row), self.lines.number(row))

    @property
    def is_single(self) -> bool:
        """Whether each of the first rows that are looked at holds one sample; bad ones do not count."""
        for row in self.looked_at[:FIRST]:
            try:
                if len(self.samples(row)) != 1:
                    return False
            except ROW_ERRORS:
                continue
        return True

    def where(self, row: int) -> str:
        """The place of a row, for messages."""
        return self.file.where(self.lines.line(row), self.lines.number(row))

    def forget(self) -> None:
        """Lets go of what is kept of images that were named."""
        self.file.forget()

    def successor(self, row: int) -> int:
        """The next row of the file."""
        return (row + 1) % len(self)

    @property
    def images(self) -> int:
        """Distinct images; a row without one counts as one."""
        return self.lines.groups

    @property
    def identity(self) -> str:
        """SHA-256 of the file, and how many rows of it."""
        return self.lines.sha256 + json.dumps([len(self), self.source.limit])

    @property
    def longest(self) -> list[int]:
        """Rows with the longest lines."""
        return self.lines.longest

    def drawn(self, draw: SourceDraw, longest: int, seed: int) -> NextRow:
        """Rows epoch by epoch, in the order of `epoch_order` or of the file.

        Args:
            draw: in which.
            longest: the most rows of an image that follow each other.
            seed: same seed, same order.

        Returns:
            What gives the next row.
        """
        if not draw.shuffle:
            return one_by_one(itertools.cycle(range(len(self))))
        return one_by_one(self._epochs(longest, seed))

    def _epochs(self, longest: int, seed: int) -> Iterator[int]:
        for epoch in itertools.count():
            order = self.order(longest, seed * 1_000_003 + epoch)
            for start in range(0, len(order), _AT_ONCE):
                yield from order[start : start + _AT_ONCE].tolist()

    def order(self, longest: int, seed: int) -> Array:
        """The rows in the order of an epoch; see `epoch_order`."""
        return epoch_order(self.lines.grouped, self.lines.starts, longest, seed, self.lines.folder)

    def one_of_each(self) -> Iterator[Sample]:
        """The first sample of every group of one image, where it can be used and the image, too."""
        for begin in self.lines.starts[:-1].tolist():
            try:
                sample = self[int(self.lines.grouped[begin])]
            except ROW_ERRORS:  # met when the row is drawn
                continue
            if not any(image.key in self.bad_images for image in sample.images):
                yield sample

    @cached_property
    def looked_at(self) -> list[int]:
        """About `LOOKED_AT` rows, drawn at random with others of their images; all where there are few."""
        if len(self) <= LOOKED_AT:
            return list(range(len(self)))
        starts, rows = self.lines.starts, list[int]()
        generator = random.Random(self.seed)
        taken: set[int] = set()
        while len(rows) < LOOKED_AT:
            group = generator.randrange(self.lines.groups)
            if group not in taken:
                taken.add(group)
                begin, end = int(starts[group]), int(starts[group + 1])
                rows += self.lines.grouped[begin : min(end, begin + LOOKED_AT)].tolist()
        return sorted(rows)

    @property
    def few(self) -> list[Sample]:
        """The samples of the rows that are looked at, without those of bad images.

        Returns:
            The good ones.

        Raises:
            DataError: a row cannot be used, and none may be left out, or clearly more than may be.
            SafetyError: a row names a file that it may not.
        """
        return [s for s in self._few if not any(image.key in self.bad_images for image in s.images)]

    @cached_property
    def _few(self) -> list[Sample]:
        """The same, whatever their images are; raises what is wrong with rows, as a reader does.

        Returns:
            The good ones, at least one.

        Raises:
            DataError: a row cannot be used, and none may be left out, or clearly more than may be.
            SafetyError: a row names a file that it may not.
        """
        few = self.looked_at
        skip = self.source.bad_rows
        if skip is not None:
            skip = replace(skip, max_fraction=allowance(skip.max_fraction, len(few), len(self)))
        problems = Problems(str(self.source.path), skip=skip)
        good: list[Sample] = []
        for row in few:
            try:
                good.append(self[row])
            except ROW_ERRORS as error:
                problems.add(error)
        problems.finish(len(good))
        return good


def allowance(allowed: float, few: int, rows: int) -> float:
    """The largest share of bad ones among some that is no sign of a larger one among all.

    Args:
        allowed: the largest share among all.
        few: how many were looked at, at random.
        rows: how many there are.

    Returns:
        The share; `allowed` itself where all were looked at.
    """
    if few >= rows:
        return allowed
    return min(1.0, allowed + SPREAD * ((allowed * (1 - allowed)) ** 0.5 / few**0.5))
