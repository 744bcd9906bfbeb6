"""Rows of shards as training takes them: permuted blocks in windows, whose rows are shuffled."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from lockadapt.data.problems import ROW_ERRORS, Problems
from lockadapt.data.readers.columns import RowRules
from lockadapt.data.readers.rows import samples_of
from lockadapt.data.readers.shards import shard_rules
from lockadapt.data.readers.source import Source
from lockadapt.data.sample import Sample
from lockadapt.data.shards.base import Shards
from lockadapt.data.sources import NextRow, SourceDraw, one_by_one
from lockadapt.data.stored import StoredRows
from lockadapt.data.table import allowance
from lockadapt.errors import DataError, SafetyError

WINDOW_ROWS, WINDOW_BYTES = 4_096, 256 * 1024**2
"""A window has as many blocks as hold so many rows, or so many bytes, at least one."""
LOOKED_AT, LOOKED_BYTES = 500, 64 * 1024**2
"""Rows that are read before step 1, of a few blocks, and the bytes of their images."""


class StreamRows(StoredRows):
    """Rows of shards, as samples.

    Args:
        shards: the files.
        source: of the rows.
        rules: by which a row becomes samples.
        seed: which rows are looked at before step 1.
        single: whether a row must hold one sample, as it must to be drawn.
    """

    def __init__(
        self, shards: Shards, source: Source, rules: RowRules, seed: int = 0, single: bool = True
    ) -> None:
        self.shards, self.source, self.rules, self.seed, self.single = shards, source, rules, seed, single
        shards.keep(_blocks_of_a_window(np.diff(shards.begins), shards.index.block_bytes))

    def __len__(self) -> int:
        return self.shards.rows

    def samples(self, row: int) -> list[Sample]:
        """The samples of a row, with the bytes of its images.

        Args:
            row: its number.

        Returns:
            At least one.

        Raises:
            DataError: the row cannot be used, or holds several samples and may not.
            SafetyError: it names a file that it may not.
        """
        samples = samples_of(self.shards.row(row), self.rules, self.where(row))
        if self.single:
            self._refuse_several(samples, row)
        return samples

    def lean(self, row: int) -> list[Sample]:
        """The samples of a row without the bytes of its images, which are read again when they are opened.

        Args:
            row: its number.

        Returns:
            At least one.

        Raises:
            DataError: the row cannot be used.
            SafetyError: it names a file that it may not.
        """
        samples = self.samples(row)
        self.forget()
        return [self._lean(sample, row) for sample in samples]

    def listed(self, most: int | None = None) -> list[Sample]:
        """The first samples, lean.

        Args:
            most: how many; None: all.

        Returns:
            At least one.

        Raises:
            DataError: a row cannot be used and none may be left out, or more than may be.
            SafetyError: a row names a file that it may not.
        """
        problems = Problems(str(self.source.path), skip=self.source.bad_rows)
        samples: list[Sample] = []
        good = 0
        for row in range(len(self)):
            if most is not None and len(samples) >= most:
                break
            try:
                samples += self.lean(row)
                good += 1
            except ROW_ERRORS as error:
                problems.add(error)
        problems.finish(good)
        return samples[:most]

    def _lean(self, sample: Sample, row: int) -> Sample:
        images = (
            replace(image, data=None, again=partial(self._bytes, row, image.key)) if image.data else image
            for image in sample.images
        )
        return replace(sample, images=tuple(images))

    def _bytes(self, row: int, key: str) -> bytes:
        # With rules of its own: images are opened by several threads.
        for sample in samples_of(self.shards.row(row), shard_rules(self.source), self.where(row)):
            for image in sample.images:
                if image.key == key and image.data is not None:
                    return image.data
        raise DataError("is not in its row any more", fix="leave shards alone while they are read")

    @property
    def listable(self) -> bool:
        """No: the images are in the rows."""
        return False

    @property
    def images(self) -> int:
        """As many as rows, as far as is known without reading them."""
        return len(self)

    @property
    def identity(self) -> str:
        """Of the files by name and size, and of their rows."""
        return self.shards.identity

    @property
    def longest(self) -> list[int]:
        """Not known without reading all."""
        return []

    def where(self, row: int) -> str:
        """The file of a row and its number in it."""
        return self.shards.where(row)

    def successor(self, row: int) -> int:
        """The next row of its block, which was read, the first after the last; or of the next block."""
        block = self.shards.block_of(row)
        begin, end = self.shards.begins[block : block + 2].tolist()
        if self.shards.is_unreadable(block):
            return int(end) % len(self)
        return int(row + 1 if row + 1 < end else begin)

    @property
    def unreadable(self) -> tuple[DataError, ...]:
        """Files that are left out, and why."""
        return self.shards.unreadable

    def forget(self) -> None:
        """Lets go of the images of rows."""
        self.rules.forget()

    def one_of_each(self) -> Iterator[Sample]:
        """The samples that are looked at: which rows show the same image is not known without reading all."""
        return iter(self.few)

    @property
    def few(self) -> list[Sample]:
        """The samples of the rows that are looked at, without those of bad images."""
        return [s for s in self._few if not any(image.key in self.bad_images for image in s.images)]

    @cached_property
    def _few(self) -> list[Sample]:
        skip = self.source.bad_rows
        good: list[Sample] = []
        tried = size = 0
        blocks = list(range(len(self.shards.begins) - 1))
        random.Random(self.seed).shuffle(blocks)
        errors: list[DataError | SafetyError] = []
        for row in itertools.chain.from_iterable(
            range(*self.shards.begins[block : block + 2].tolist()) for block in blocks
        ):
            if tried >= LOOKED_AT or size > LOOKED_BYTES:
                break
            tried += 1
            try:
                samples = self.samples(row)
            except ROW_ERRORS as refused:
                errors.append(refused)
            else:
                size += sum(len(image.data or b"") for sample in samples for image in sample.images)
                good += [self._lean(sample, row) for sample in samples]
                self.forget()
        if skip is not None:
            skip = replace(skip, max_fraction=allowance(skip.max_fraction, tried, len(self)))
        problems = Problems(str(self.source.path), skip=skip)
        for error in errors:
            problems.add(error)
        problems.finish(len(good))
        return good

    def drawn(self, draw: SourceDraw, longest: int, seed: int) -> NextRow:
        """Rows by windows, epoch by epoch: a lane takes the next window when its own has ended.

        Args:
            draw: `shuffle` false: rows in the order of the files.
            longest: not used: which rows show the same image is not known.
            seed: same seed, same order.

        Returns:
            What gives the next row of a lane.
        """
        if not draw.shuffle:
            return one_by_one(itertools.cycle(range(len(self))))
        windows = self._windows(seed)
        lanes: dict[int, Iterator[int]] = {}

        def next_row(lane: int) -> int:
            while True:
                for row in lanes.get(lane, ()):
                    return row
                lanes[lane] = iter(next(windows).tolist())

        return next_row

    def _windows(self, seed: int) -> Iterator[np.ndarray[Any, Any]]:
        """The rows of one window after the other, each in random order; all of an epoch before the next."""
        begins = self.shards.begins
        rows = np.diff(begins)
        sizes = self.shards.index.block_bytes
        for epoch in itertools.count():
            generator = np.random.Generator(np.random.Philox(key=[seed % 2**64, epoch]))
            window: list[int] = []
            order = generator.permutation(len(rows)).tolist()
            for position, block in enumerate(order, start=1):
                window.append(block)
                full = rows[window].sum() >= WINDOW_ROWS or sizes[window].sum() >= WINDOW_BYTES
                if full or position == len(order):
                    inside = np.concatenate([np.arange(begins[b], begins[b + 1]) for b in window])
                    yield generator.permutation(inside)
                    window = []


def _blocks_of_a_window(rows: np.ndarray[Any, Any], sizes: np.ndarray[Any, Any]) -> int:
    """The most blocks that a window can have, whichever they are."""
    by_rows = int(np.searchsorted(np.cumsum(np.sort(rows)), WINDOW_ROWS)) + 1
    by_bytes = int(np.searchsorted(np.cumsum(np.sort(sizes[: len(rows)])), WINDOW_BYTES)) + 1
    return min(by_rows, by_bytes, len(rows))
