"""An index on disk of a file of JSON lines: where each row begins, and which rows name the same image.

It is built once for a state of the file and mapped from then on, so that a row is read when it is needed and
no process holds the file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lockadapt.data.paths import refuse_pickle
from lockadapt.errors import DataError, LockadaptError, RecipeError
from lockadapt.files import new_folder, opened, remove_folder, sha256_of, write_json

VERSION = 1
LONGEST = 64
"""Rows with the longest lines that an index names."""

_SCANNED, _PARSED, _AT_ONCE = 8 << 20, 32 << 20, 1 << 16
"""Bytes that are searched for line ends, parsed for image names, and read of one line, at a time."""
_NEWLINE, _BLANKS, _BOM = 10, (9, 10, 11, 12, 13, 32), b"\xef\xbb\xbf"
_ABOUT = "about.json"


@dataclass(frozen=True)
class Lines:
    """The file that an index is of, as it was.

    Attributes:
        path: absolute.
        size, changed_ns: of the file.
        column: the name under which rows name their images; None: no two rows belong together.
        limit: only so many rows, the first ones; None: all.
    """

    path: str
    size: int
    changed_ns: int
    column: str | None
    limit: int | None

    @classmethod
    def of(cls, file: Path, column: str | None, limit: int | None) -> Lines:
        """The state that a file is in."""
        status = os.stat(file)
        return cls(os.path.realpath(file), status.st_size, status.st_mtime_ns, column, limit)

    @property
    def name(self) -> str:
        """The folder of the index."""
        text = json.dumps([VERSION, *asdict(self).values()])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class LineIndex:
    """An index that was built.

    Args:
        folder: where it lies.
        lines: of which file.

    Attributes:
        begins: uint64 (rows + 1,), where each row begins, in bytes, and where the last one ends.
        grouped: uint32 (rows,), the rows, those of one image one behind the other.
        starts: uint32 (groups + 1,), where each group begins in `grouped`.
        sha256: of the file.
        longest: rows with the longest lines, the longest first.

    Raises:
        LockadaptError: it is damaged.
    """

    def __init__(self, folder: Path, lines: Lines) -> None:
        self.folder, self.lines = folder, lines
        try:
            about: dict[str, Any] = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
            rows, groups = int(about["rows"]), int(about["groups"])
            self.sha256, self.longest = str(about["sha256"]), [int(row) for row in about["longest"]]
            self.begins = np.memmap(folder / "begins.bin", np.uint64, "r", shape=(rows + 1,))
            self.grouped = np.memmap(folder / "grouped.bin", np.uint32, "r", shape=(rows,))
            self.starts = np.memmap(folder / "starts.bin", np.uint32, "r", shape=(groups + 1,))
            numbered = (folder / "numbers.bin").is_file()
            self._numbers = (
                np.memmap(folder / "numbers.bin", np.uint32, "r", shape=(rows,)) if numbered else None
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LockadaptError(f"the index is damaged: {error}", where=str(folder)) from error

    def __len__(self) -> int:
        return len(self.grouped)

    @property
    def groups(self) -> int:
        """How many distinct images rows name; a row without one counts as one."""
        return len(self.starts) - 1

    def number(self, row: int) -> int:
        """The line of a row in its file, counted from 1."""
        return row + 1 if self._numbers is None else int(self._numbers[row])

    def line(self, row: int) -> bytes:
        """The bytes of a row, without the line's end.

        Args:
            row: its number.

        Returns:
            The bytes.

        Raises:
            DataError: the file is not the one that the index was made of.
        """
        status = os.fstat(self._handle)
        if (status.st_size, status.st_mtime_ns) != (self.lines.size, self.lines.changed_ns):
            raise DataError(
                "the file has changed since the run began",
                where=self.lines.path,
                fix="leave rows alone while they are read; start again",
            )
        # Not mapped: a file that is cut off meanwhile would end the process.
        begin, end = int(self.begins[row]), int(self.begins[row + 1])
        return os.pread(self._handle, end - begin, begin).partition(b"\n")[0]

    @cached_property
    def _handle(self) -> int:
        return os.open(self.lines.path, os.O_RDONLY)


def open_index(lines: Lines, cache: Path) -> LineIndex:
    """Opens the index of a file, or builds it.

    Args:
        lines: the file.
        cache: the folder where indexes are kept.

    Returns:
        The index.

    Raises:
        DataError: the file cannot be read, or has no rows.
        SafetyError: it is pickle.
        DiskError: the index cannot be written.
    """
    folder = cache.expanduser() / lines.name
    if folder.is_dir():
        try:
            return LineIndex(folder, lines)
        except LockadaptError:
            remove_folder(folder)
    refuse_pickle(Path(lines.path))
    try:
        with new_folder(folder, what="the index of rows") as temporary:
            _build(lines, temporary)
    except RecipeError:  # another process was faster
        pass
    return LineIndex(folder, lines)


def _build(lines: Lines, folder: Path) -> None:
    file = Path(lines.path)
    with opened(file, os.O_RDONLY) as handle:
        rows = _find_rows(handle, lines, folder)
        if not rows:
            raise DataError("there is no row in it", where=lines.path, fix="add rows, or name another file")
        if rows >= 2**32:
            raise DataError(f"has {rows:,} rows, more than 2^32", where=lines.path, fix="divide it")
        begins = np.memmap(folder / "begins.bin", np.uint64, "r", shape=(rows + 1,))
        keys = np.memmap(folder / "keys.bin", np.uint64, "w+", shape=(rows,))
        for first, last in _parts(begins):
            part = os.pread(handle, int(begins[last] - begins[first]), int(begins[first]))
            keys[first:last] = _keys(part, first, last, lines.column)
        order = np.argsort(keys, kind="stable")
        in_order = keys[order]
        new = np.flatnonzero(in_order[1:] != in_order[:-1]) + 1
        order.astype(np.uint32).tofile(folder / "grouped.bin")
        np.concatenate([[0], new, [rows]]).astype(np.uint32).tofile(folder / "starts.bin")
        longest = _longest(begins)
    del keys
    (folder / "keys.bin").unlink()
    if Lines.of(file, lines.column, lines.limit) != lines:
        raise DataError("the file changes while it is read", where=lines.path, fix="wait until it is whole")
    about = {"rows": rows, "groups": len(new) + 1, "sha256": sha256_of(file), "longest": longest}
    write_json(folder / _ABOUT, {**about, **asdict(lines)})


def _find_rows(handle: int, lines: Lines, folder: Path) -> int:
    """Writes where rows begin, and their lines' numbers where blank lines stand between them; counts rows."""
    rows = line = last = 0
    blanks = False
    carried = np.array([len(_BOM) if os.pread(handle, len(_BOM), 0) == _BOM else 0], np.int64)
    with open(folder / "begins.bin", "wb") as begins, open(folder / "numbers.bin", "wb") as numbers:
        for start in range(0, lines.size, _SCANNED):
            part = np.frombuffer(os.pread(handle, _SCANNED, start), np.uint8)
            at = np.concatenate([carried, np.flatnonzero(part == _NEWLINE) + start + 1])
            at, carried = at[:-1], at[-1:]
            if start + _SCANNED >= lines.size:
                at = np.concatenate([at, carried[carried < lines.size]])
            blank = np.zeros(len(at), bool)
            here = at >= start
            blank[here], blank[~here] = np.isin(part[at[here] - start], _BLANKS), True
            for number in np.flatnonzero(blank).tolist():
                blank[number] = _is_blank(handle, int(at[number]))
            kept = np.flatnonzero(~blank)[: None if lines.limit is None else lines.limit - rows]
            at[kept].astype(np.uint64).tofile(begins)
            (kept + line + 1).astype(np.uint32).tofile(numbers)
            blanks |= bool(blank.any())
            rows, line = rows + len(kept), line + len(at)
            last = int(at[kept[-1]]) if len(kept) else last
            if rows == lines.limit:
                break
        np.array([_end_of(handle, last)], np.uint64).tofile(begins)
    if not blanks:
        (folder / "numbers.bin").unlink()
    return rows


def _line_parts(handle: int, begin: int) -> Iterator[bytes]:
    """The bytes of a line, its end included, in parts."""
    while part := os.pread(handle, _AT_ONCE, begin):
        end = part.find(b"\n")
        yield part if end < 0 else part[: end + 1]
        if end >= 0:
            return
        begin += len(part)


def _is_blank(handle: int, begin: int) -> bool:
    """Whether a line holds nothing but white space."""
    return all(part.isspace() for part in _line_parts(handle, begin))


def _end_of(handle: int, begin: int) -> int:
    """Where the line ends that begins here."""
    return begin + sum(map(len, _line_parts(handle, begin)))


def _parts(begins: np.ndarray[Any, Any]) -> Iterator[tuple[int, int]]:
    """First row, and the one behind the last, of parts of about `_PARSED` bytes."""
    first, rows = 0, len(begins) - 1
    while first < rows:
        last = int(np.searchsorted(begins, begins[first] + np.uint64(_PARSED)))
        last = min(max(first + 1, last), rows)
        yield first, last
        first = last


def _keys(part: bytes, first: int, last: int, column: str | None) -> np.ndarray[Any, Any]:
    """A number for each row, the same for rows that name the same image; a row without one has its own."""
    own = np.arange(first, last, dtype=np.uint64)
    if column is None:
        return own
    names = _names(part, column)
    if names is None or len(names) != len(own) or names.null_count == len(names):
        return _slow_keys(part, own, column)
    import pandas as pd

    coded = names.dictionary_encode()
    texts = coded.dictionary.to_numpy(zero_copy_only=False)
    hashes = pd.util.hash_array(np.asarray(texts, object), categorize=False)
    indices = coded.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False)
    return np.where(indices < len(texts), np.append(hashes, np.uint64(0))[indices], own)


def _names(part: bytes, column: str) -> Any:
    """The texts of a column, by Arrow's parser; None where it does not take the lines, or other values."""
    import pyarrow as pa
    from pyarrow import json as arrow_json

    try:
        table = arrow_json.read_json(
            pa.BufferReader(part),
            arrow_json.ReadOptions(block_size=max(4 << 20, 1)),
            arrow_json.ParseOptions(pa.schema([(column, pa.string())]), False, "ignore"),
        )
    except pa.ArrowException:
        return None
    return table.column(column).combine_chunks()


def _slow_keys(part: bytes, own: np.ndarray[Any, Any], column: str) -> np.ndarray[Any, Any]:
    """The same by Python's parser, of any values."""
    keys, row = own.copy(), 0
    for line in part.split(b"\n"):
        if not line or line.isspace():
            continue
        try:
            values = json.loads(line)
            value = values.get(column, values.get(f"{column}s"))
        except (ValueError, RecursionError, AttributeError):
            value = None
        if value not in (None, "", []):
            digest = hashlib.blake2b(json.dumps(value).encode(errors="replace"), digest_size=8)
            keys[row] = int.from_bytes(digest.digest(), "big")
        row += 1
        if row == len(keys):
            break
    return keys


def _longest(begins: np.ndarray[Any, Any]) -> list[int]:
    """The rows with the longest lines."""
    lengths = np.diff(begins).astype(np.int64)
    count = min(LONGEST, len(lengths))
    longest = np.argpartition(lengths, len(lengths) - count)[-count:]
    return [int(row) for row in longest[np.argsort(-lengths[longest], kind="stable")]]
