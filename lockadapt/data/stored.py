"""Rows that are not all read before step 1: what training asks of them, and several sources as one."""

from __future__ import annotations

import bisect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NoReturn, overload

from lockadapt.data.sample import ImageRef, Sample
from lockadapt.data.sources import NextRow, SourceDraw
from lockadapt.errors import DataError, RecipeError


class StoredRows(Sequence[Sample], ABC):
    """Samples by number, each read and checked when it is asked for: of a file, of shards, or of several.

    Attributes:
        bad_images: keys of images that cannot be used, as far as they were opened before step 1.
    """

    bad_images: frozenset[str] = frozenset()

    @overload
    def __getitem__(self, row: int) -> Sample: ...
    @overload
    def __getitem__(self, row: slice) -> list[Sample]: ...
    def __getitem__(self, row: int | slice) -> Sample | list[Sample]:
        """Reads one sample, or those of a slice.

        Args:
            row: its number, or a slice.

        Returns:
            The sample, or those of a slice.

        Raises:
            DataError: the row cannot be used, or holds several samples.
            SafetyError: it names a file that it may not.
        """
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        samples = self.samples(row)
        self._refuse_several(samples, row)
        return samples[0]

    def _refuse_several(self, samples: Sequence[Sample], row: int) -> None:
        if len(samples) != 1:
            raise DataError(
                f"the row holds {len(samples)} samples",
                where=self.where(row),
                fix="write one caption a row, or let the recipe keep rows in memory (data.rows: memory)",
            )

    @abstractmethod
    def samples(self, row: int) -> list[Sample]:
        """What a row holds; `row` is its number from 0."""

    @property
    def parts(self) -> tuple[StoredRows, ...]:
        """The sources that it is made of, one behind the other."""
        return (self,)

    def refuse_images(self, keys: frozenset[str]) -> None:
        """Notes which images cannot be used."""
        self.bad_images = keys

    @property
    def unreadable(self) -> tuple[DataError, ...]:
        """Files that cannot be read and are left out, and why."""
        return tuple(error for part in self.parts if part is not self for error in part.unreadable)

    @property
    def listable(self) -> bool:
        """Whether its images can be gone through before step 1."""
        return all(part.listable for part in self.parts) if len(self.parts) > 1 else True

    @property
    @abstractmethod
    def images(self) -> int:
        """How many images rows show, as far as that is known without reading them."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """What tells these rows from others."""

    @property
    @abstractmethod
    def longest(self) -> Sequence[int]:
        """The rows that take the most room, the largest first."""

    @property
    @abstractmethod
    def few(self) -> list[Sample]:
        """The samples of some rows, which stand for all; none of them shows a bad image."""

    @abstractmethod
    def where(self, row: int) -> str:
        """The place of a row, for messages."""

    @abstractmethod
    def successor(self, row: int) -> int:
        """The row that stands in the place of one that cannot be used."""

    @abstractmethod
    def forget(self) -> None:
        """Lets go of what is kept of images that were named."""

    @abstractmethod
    def one_of_each(self) -> Iterator[Sample]:
        """The first sample of every image, where both can be used."""

    @abstractmethod
    def drawn(self, draw: SourceDraw, longest: int, seed: int) -> NextRow:
        """Gives rows epoch by epoch, without end.

        Args:
            draw: in which order.
            longest: the most rows of an image that follow each other.
            seed: same seed, same order.

        Returns:
            What gives the next row.
        """

    def images_by_key(self) -> dict[str, ImageRef]:
        """The distinct images of `one_of_each`."""
        return {image.key: image for sample in self.one_of_each() for image in sample.images}


class JoinedRows(StoredRows):
    """Several sources of one objective, one behind the other; their samples know which they are of.

    Args:
        parts: at least two.
    """

    def __init__(self, parts: Sequence[StoredRows]) -> None:
        self._parts = tuple(parts)
        self.starts = [0, *itertools.accumulate(len(part) for part in parts)]

    @property
    def parts(self) -> tuple[StoredRows, ...]:
        """The sources."""
        return self._parts

    def __len__(self) -> int:
        return self.starts[-1]

    def samples(self, row: int) -> list[Sample]:
        """What a row holds."""
        number, own = self._part(row)
        return [replace(self._parts[number][own], source=number)]

    def refuse_images(self, keys: frozenset[str]) -> None:
        """Notes which images cannot be used."""
        self.bad_images = keys
        for part in self._parts:
            part.refuse_images(keys)

    @property
    def images(self) -> int:
        """Of all sources together; one that two of them show counts twice."""
        return sum(part.images for part in self._parts)

    @property
    def identity(self) -> str:
        """Of all sources."""
        return "\n".join(part.identity for part in self._parts)

    @property
    def longest(self) -> list[int]:
        """Of all sources."""
        pairs = zip(self._parts, self.starts, strict=False)
        return [start + row for part, start in pairs for row in part.longest]

    @property
    def few(self) -> list[Sample]:
        """Of all sources."""
        return [replace(s, source=number) for number, part in enumerate(self._parts) for s in part.few]

    def where(self, row: int) -> str:
        """In its source."""
        number, own = self._part(row)
        return self._parts[number].where(own)

    def successor(self, row: int) -> int:
        """Of the same source."""
        number, own = self._part(row)
        return self.starts[number] + self._parts[number].successor(own)

    def forget(self) -> None:
        """Lets go of what is kept of images that were named."""
        for part in self._parts:
            part.forget()

    def one_of_each(self) -> Iterator[Sample]:
        """Of all sources."""
        return itertools.chain.from_iterable(part.one_of_each() for part in self._parts)

    def drawn(self, draw: SourceDraw, longest: int, seed: int) -> NoReturn:
        """Not of all at once: each of `parts` has an order of its own.

        Args:
            draw: in which order.
            longest: the most rows of an image that follow each other.
            seed: same seed, same order.

        Raises:
            RecipeError: always.
        """
        raise RecipeError("several sources have no order in common")

    def _part(self, row: int) -> tuple[int, int]:
        """The number of its source, and of the row in it."""
        number = bisect.bisect_right(self.starts, row) - 1
        return number, row - self.starts[number]


def few_of(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Samples that stand for all: of stored rows those that are looked at, else all."""
    return samples.few if isinstance(samples, StoredRows) else samples
