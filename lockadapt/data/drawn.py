"""Rows that are read, checked and encoded when they are drawn; in the place of a bad one stands the next."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import overload

from lockadapt.data.bad_rows import BadRowLog, Kind
from lockadapt.data.encode import Encoded, EncodeReport
from lockadapt.data.images import open_image
from lockadapt.data.sample import ImageRef, Sample
from lockadapt.data.stored import StoredRows
from lockadapt.errors import DataError, SafetyError

TRIED = 1_000
"""Rows that follow each other and may all be bad, before a run ends."""

Encode = Callable[[Sequence[Sample]], EncodeReport]


class DrawnRows(Sequence[Encoded]):
    """The encoded rows of a table, each made when it is asked for.

    A row that cannot be used is an error, or, where the recipe leaves such rows out, the next row of its
    source that can be used stands in its place: what row that is depends on the source alone, so that all
    processes and resumed runs see the same.

    Args:
        table: the rows.
        encode: makes token arrays of samples, those of a sample always the same.
        log: told of rows that are left out.
        max_pixels: the limit of images, which are opened when their rows are drawn, so that bad ones can be
            left out; None: they are not.
    """

    def __init__(
        self, table: StoredRows, encode: Encode, log: BadRowLog, max_pixels: int | None = None
    ) -> None:
        self.table, self.encode, self.log, self.max_pixels = table, encode, log, max_pixels

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, row: int) -> Encoded: ...
    @overload
    def __getitem__(self, row: slice) -> list[Encoded]: ...
    def __getitem__(self, row: int | slice) -> Encoded | list[Encoded]:
        """A row, or those of a slice; see `take`."""
        if isinstance(row, slice):
            return self.take(range(*row.indices(len(self))))
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        return self.take([row % len(self)])[0]

    def take(self, rows: Sequence[int]) -> list[Encoded]:
        """Makes rows.

        Args:
            rows: their numbers.

        Returns:
            As many encoded rows, in their order.

        Raises:
            DataError: a row cannot be used and none may be left out, or too many were left out.
            SafetyError: a row names a file that it may not.
        """
        try:
            return self._together(rows)
        except (DataError, SafetyError):
            return [self._usable(row) for row in rows]
        finally:
            self.table.forget()

    def _together(self, rows: Sequence[int]) -> list[Encoded]:
        """Makes rows at once.

        Raises:
            DataError: one of them cannot be used.
        """
        samples = [self.table[row] for row in rows]
        report = self.encode(samples)
        if len(report.encoded) != len(samples):
            raise DataError("a row became none, or several")
        return [self._with_images(row) for row in report.encoded]

    def _usable(self, row: int) -> Encoded:
        """The row, or the next one that can be used."""
        number = row
        for tried in range(min(TRIED, len(self))):
            number = self.table.successor(number) if tried else row
            where = self.table.where(number)
            kind: Kind = "row"
            try:
                report = self.encode([self.table[number]])
                if len(report.encoded) == 1:
                    kind = "image"
                    return self._with_images(report.encoded[0])
                if report.encoded:
                    raise DataError(
                        "the row becomes several with this model",
                        where=where,
                        fix="let the recipe keep rows in memory (data.rows: memory)",
                    )
                kind, reason = "length", "longer than data.max_length"
            except SafetyError as error:
                if kind != "image" or not self.log.allowed.skip_images:
                    raise
                reason = error.message
            except DataError as error:
                if not self.log.allowed.skips(kind):
                    raise
                reason = error.message
            self.log.add(where, reason, kind)
        raise DataError(
            f"none of {min(TRIED, len(self)):,} rows from here on can be used",
            where=self.table.where(row),
            fix="correct them, or raise data.max_length",
        )

    def _with_images(self, row: Encoded) -> Encoded:
        """The row with its images opened, where they are used as pixels and bad ones are left out."""
        where = row.sample.where
        for image in row.images:
            if image.key in self.table.bad_images:
                raise DataError("its image cannot be used", where=where)
        if self.max_pixels is None:
            return row
        images = tuple(
            image
            if image.picture is not None
            else ImageRef(image.key, picture=open_image(image, self.max_pixels, where))
            for image in row.images
        )
        return replace(row, images=images)

    @cached_property
    def report(self) -> EncodeReport:
        """What became of the rows that are looked at."""
        return self.encode(self.table.few)

    @property
    def few(self) -> list[Encoded]:
        """Rows that stand for all."""
        return self.report.encoded

    @cached_property
    def longest(self) -> list[Encoded]:
        """The rows of the file's longest lines, those of them that can be used."""
        made: list[Encoded] = []
        for row in self.table.longest:
            try:
                made += [self._with_images(made_row) for made_row in self.encode([self.table[row]]).encoded]
            except (DataError, SafetyError):
                continue
        return made or self.few[:1]

    @property
    def share(self) -> float:
        """How many rows each of those that are looked at stands for."""
        return len(self) / max(len(self.table.few), 1)

    def digest(self) -> str:
        """SHA-256, hex, of the file and of what the rows that are looked at teach."""
        digest = hashlib.sha256(self.table.identity.encode())
        for row in self.few:
            digest.update(json.dumps([len(row.input_ids), len(row.images)]).encode())
            digest.update(row.input_ids.tobytes())
            digest.update(row.labels.tobytes())
        return digest.hexdigest()


def few_rows(rows: Sequence[Encoded]) -> Sequence[Encoded]:
    """Encoded rows that stand for all: of drawn ones those that are looked at, else all."""
    return rows.few if isinstance(rows, DrawnRows) else rows


def longest_rows(rows: Sequence[Encoded]) -> Sequence[Encoded]:
    """Of rows on disk the longest; none of others, of which all are known."""
    return rows.longest if isinstance(rows, DrawnRows) else ()
