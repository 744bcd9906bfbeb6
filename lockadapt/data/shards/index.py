"""What shards hold: where their blocks and records are, found once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lockadapt.data.shards.files import State, reading
from lockadapt.errors import DataError, DiskError, LockadaptError, RecipeError
from lockadapt.files import new_folder, write_json

_VERSION = 2
_LONGEST_NAME = 200
_ARRAYS = ("block_file", "block_rows", "block_bytes", "parts", "starts", "names", "name_starts")

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Record:
    """One row of a tar.

    Attributes:
        name: of its members, up to the first dot.
        parts: extension, offset and size of each member.
    """

    name: str
    parts: list[tuple[str, int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Block:
    """Rows that are read together.

    Attributes:
        rows: how many.
        bytes: what they take in memory; 0 where they are read one by one.
        records: of a tar; else empty.
    """

    rows: int
    bytes: int
    records: Sequence[Record] = ()


@dataclass(frozen=True)
class Index:
    """What shards hold.

    Attributes:
        block_file: (blocks,), the file of each block of rows.
        block_rows: (blocks,), its rows.
        block_bytes: (blocks,), what it takes in memory; 0 where its rows are read one by one.
        parts: (parts, 3), of tars: offset, size and position in `kinds` of each member; else empty.
        starts: (records + 1,), of tars: where the parts of each record begin.
        names: (bytes,), of tars: the names of all records, UTF-8.
        name_starts: (records + 1,), of tars: where the name of each record begins.
        kinds: of tars: the extensions of members.
        bad: files that cannot be read, and why; they hold no blocks.
    """

    block_file: Array
    block_rows: Array
    block_bytes: Array
    parts: Array
    starts: Array
    names: Array
    name_starts: Array
    kinds: tuple[str, ...]
    bad: tuple[DataError, ...] = ()

    def name(self, record: int) -> str:
        """The name of a record of a tar."""
        begin, end = self.name_starts[record : record + 2].tolist()
        return bytes(self.names[begin:end]).decode(errors="replace")


@dataclass(frozen=True)
class Files:
    """Files of one format.

    Attributes:
        format: of all.
        names: as fsspec takes them, in order.
        states: of each.
        limit: of their rows so many are asked for; None: all.
    """

    format: str
    names: tuple[str, ...]
    states: tuple[State, ...]
    limit: int | None


def open_index(files: Files, held: Callable[[str], Iterable[Block]], cache: Path | None) -> Index:
    """Opens the index of files, or builds it.

    Args:
        files: of which.
        held: gives the blocks of a file.
        cache: the folder of indexes; None: none is kept. Neither is one where that cannot be written, or of
            files that cannot be read: they may be readable the next time.

    Returns:
        The index, mapped where it is kept.

    Raises:
        SafetyError: a file holds what is not read.
        LockadaptError: the index that was kept is damaged.
    """
    if cache is None:
        return _built(files, held)
    text = json.dumps([_VERSION, files.format, files.limit, files.names, files.states])
    folder = cache.expanduser() / f"shards-{hashlib.sha256(text.encode()).hexdigest()[:32]}"
    if not (folder / "about.json").is_file():
        index = _built(files, held)
        if index.bad:
            return index
        try:
            with new_folder(folder, what="the index of shards") as temporary:
                for name in _ARRAYS:
                    np.save(temporary / f"{name}.npy", getattr(index, name))
                write_json(temporary / "about.json", {"kinds": list(index.kinds)})
        except RecipeError:  # another process was faster
            pass
        except DiskError:
            return index
    try:
        kinds = tuple(json.loads((folder / "about.json").read_text(encoding="utf-8"))["kinds"])
        arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS
        }
    except (OSError, ValueError, KeyError) as error:
        raise LockadaptError(f"the index is damaged: {error}", where=str(folder), fix="remove it") from error
    return Index(**arrays, kinds=kinds)


def _built(files: Files, held: Callable[[str], Iterable[Block]]) -> Index:
    building, rows, bad = _Building(), 0, list[DataError]()
    for number, file in enumerate(files.names):
        try:
            with reading(file):
                blocks = list(held(file))
        except DataError as error:
            bad.append(error)
            continue
        for block in blocks:
            building.add(number, block)
            rows += block.rows
        if files.limit is not None and rows >= files.limit:
            break
    return building.index(tuple(bad))


@dataclass(frozen=True)
class _Building:
    """The numbers of an index while it grows, each of 8 bytes."""

    blocks: array[int] = field(default_factory=lambda: array("q"))
    parts: array[int] = field(default_factory=lambda: array("q"))
    starts: array[int] = field(default_factory=lambda: array("q", [0]))
    names: bytearray = field(default_factory=bytearray)
    name_starts: array[int] = field(default_factory=lambda: array("q", [0]))
    kinds: dict[str, int] = field(default_factory=dict)

    def add(self, file: int, block: Block) -> None:
        """Adds a block of a file."""
        self.blocks.extend((file, block.rows, block.bytes))
        for record in block.records:
            for kind, offset, size in record.parts:
                self.parts.extend((offset, size, self.kinds.setdefault(kind, len(self.kinds))))
            self.starts.append(len(self.parts) // 3)
            self.names.extend(record.name.encode(errors="backslashreplace")[:_LONGEST_NAME])
            self.name_starts.append(len(self.names))

    def index(self, bad: tuple[DataError, ...]) -> Index:
        """The index of what was added."""
        blocks = np.asarray(self.blocks, np.int64).reshape(-1, 3)
        return Index(
            blocks[:, 0].copy(),
            blocks[:, 1].copy(),
            blocks[:, 2].copy(),
            np.asarray(self.parts, np.int64).reshape(-1, 3),
            np.asarray(self.starts, np.int64),
            np.frombuffer(bytes(self.names), np.uint8),
            np.asarray(self.name_starts, np.int64),
            tuple(self.kinds),
            bad,
        )
