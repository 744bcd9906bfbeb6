"""Rows of shards by number, whatever format they have."""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lockadapt.data.problems import ROW_ERRORS, BadRows, merged
from lockadapt.data.shards.files import state_of
from lockadapt.data.shards.index import Block, Files, open_index
from lockadapt.errors import DataError, SafetyError

KEPT_BYTES = 512 * 1024**2
"""Bytes of blocks that a process keeps, at least one block."""


class Shards(ABC):
    """The rows of some files, by number. May be used by several threads.

    Args:
        path: as the user named the files.
        files: their names, as fsspec takes them.
        limit: only so many rows, the first ones.
        cache: the folder where what files hold is kept; None: it is not.
        skip: files that cannot be read may be left out, within its limit; None: none may.

    Raises:
        DataError: a file cannot be read and may not be left out, or too many cannot; or there is no row.
        SafetyError: a file holds what is not read.
    """

    format: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        path: str,
        files: tuple[str, ...],
        limit: int | None = None,
        cache: Path | None = None,
        skip: BadRows | None = None,
    ) -> None:
        self.path, self.files, self.limit = path, files, limit
        self._folder = _shared_folder(files)
        self.states = tuple(state_of(file) for file in files)
        self.index = open_index(Files(self.format, files, self.states, limit), self._held, cache)
        self._refuse_bad(skip)
        ends = np.cumsum(self.index.block_rows)
        if not len(ends) or not ends[-1]:
            raise DataError("there is no row in it", where=path, fix="name shards with rows")
        self.rows = int(ends[-1]) if limit is None else min(limit, int(ends[-1]))
        blocks = int(np.searchsorted(ends, self.rows)) + 1
        self.begins = np.concatenate([[0], np.minimum(ends[:blocks], self.rows)]).astype(np.int64)
        """(blocks + 1,), the first row of each block."""
        self._blocks: OrderedDict[int, Any] = OrderedDict()
        self._sizes: dict[int, int] = {}
        self._lock, self._most = threading.Lock(), 2

    def keep(self, blocks: int) -> None:
        """Says how many blocks are in use at a time: so many are kept, if memory allows; by default 2."""
        self._most = max(blocks, 1)

    @property
    def unreadable(self) -> tuple[DataError, ...]:
        """Files that are left out, and why."""
        return self.index.bad

    @property
    def identity(self) -> str:
        """Of the files by name and size, and of their rows."""
        names = [[self._name(number), size] for number, (size, _) in enumerate(self.states)]
        text = json.dumps([names, self.index.block_rows.tolist(), self.rows])
        return hashlib.sha256(text.encode()).hexdigest()

    def where(self, row: int) -> str:
        """The file of a row and its number in it, from 0."""
        block = self.block_of(row)
        file = int(self.index.block_file[block])
        first = int(np.searchsorted(self.index.block_file, file))
        return f"{self._name(file)}:{row - int(self.begins[first])}"

    def block_of(self, row: int) -> int:
        """The block that holds a row."""
        return int(np.searchsorted(self.begins, row, "right")) - 1

    def is_unreadable(self, block: int) -> bool:
        """Whether a block was tried and cannot be read."""
        return isinstance(self._blocks.get(block), ROW_ERRORS)

    @abstractmethod
    def row(self, row: int) -> Any:
        """Reads a row, images as bytes.

        Args:
            row: its number.

        Returns:
            Its values by name.

        Raises:
            DataError: it cannot be read, or its file has changed.
        """

    @abstractmethod
    def _held(self, file: str) -> Iterator[Block]:
        """The blocks of a file."""

    @abstractmethod
    def _read(self, block: int) -> tuple[Any, int]:
        """What is kept of a block while its rows are read, and its bytes."""

    def _name(self, file: int) -> str:
        """Of a file, without the folders that it shares with all others."""
        return self.files[file].removeprefix(self._folder)

    def _block(self, block: int) -> Any:
        """What is kept of a block; the file was in the state of the start when it was read."""
        with self._lock:
            if block not in self._blocks:
                try:
                    self._refuse_changed(int(self.index.block_file[block]))
                    self._blocks[block], self._sizes[block] = self._read(block)
                except ROW_ERRORS as error:
                    # Without its traceback, which holds what was read.
                    self._blocks[block], self._sizes[block] = _again(error), 0
                self._let_go()
            self._blocks.move_to_end(block)
            kept = self._blocks[block]
        if isinstance(kept, ROW_ERRORS):
            raise _again(kept)
        return kept

    def _let_go(self) -> None:
        """Lets go of the blocks that were not used for the longest time."""
        while len(self._blocks) > 1 and (
            len(self._blocks) > self._most or sum(self._sizes.values()) > KEPT_BYTES
        ):
            del self._sizes[self._blocks.popitem(last=False)[0]]

    def _refuse_changed(self, file: int) -> None:
        if state_of(self.files[file]) != self.states[file]:
            raise DataError(
                "the file has changed since the run began",
                where=self.files[file],
                fix="leave shards alone while they are read; start again",
            )

    def _refuse_bad(self, skip: BadRows | None) -> None:
        """Raises what kept files from being read, or says that they are left out."""
        bad = self.index.bad
        if not bad:
            return
        if skip is None:
            raise merged(bad[:20], self.path, "shards")
        lines = "\n  ".join(f"{error.where}: {error.message}" for error in bad[:20])
        if len(bad) > skip.max_fraction * len(self.files):
            raise DataError(
                f"{len(bad):,} of {len(self.files):,} shards cannot be read:\n  {lines}",
                where=self.path,
                fix=f"fetch them again, or raise `data.max_bad_row_fraction` (now {skip.max_fraction:g})",
            )
        skip.note(f"{self.path}: left out {len(bad):,} of {len(self.files):,} shards:\n  {lines}")


def _again(error: DataError | SafetyError) -> DataError | SafetyError:
    return type(error)(error.message, where=error.where, fix=error.fix)


def _shared_folder(files: Sequence[str]) -> str:
    """The folder that all files are in, at any depth, with its last `/`."""
    folders = zip(min(files).split("/")[:-1], max(files).split("/")[:-1], strict=False)
    return "".join(
        f"{name}/" for name, other in itertools.takewhile(lambda pair: pair[0] == pair[1], folders)
    )
