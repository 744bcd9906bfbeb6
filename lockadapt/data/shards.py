"""Shards that hold rows with their images: parquet files and WebDataset tars, local or where fsspec reads."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lockadapt.data.readers.files import parsed_line
from lockadapt.errors import DataError, LockadaptError, RecipeError, SafetyError, memory_ran_out
from lockadapt.files import new_folder, write_json

SUFFIXES = {"parquet": (".parquet",), "webdataset": (".tar",)}
PROTOCOLS = (
    *("file", "local", "memory", "http", "https", "hf", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"),
    *("hdfs", "webhdfs", "oss", "sftp", "ssh", "smb", "ftp"),
)
"""Of fsspec: those that read bytes and do nothing else."""

LARGEST_BLOCK = 2 * 1024**3
"""The most bytes of one row group, as the file's footer says them."""
LARGEST_RECORD = 256 * 1024**2
"""The most bytes of one record of a tar."""
KEPT = 512 * 1024**2
"""Bytes of row groups that a process keeps, at least one group."""

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif", "jp2")
TEXTS = ("txt", "text", "caption", "question", "answer")
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_FILES = 1_000_000
_VERSION = 1


@dataclass(frozen=True)
class Index:
    """What shards hold.

    Attributes:
        files: names, as fsspec takes them, in order.
        states: size, and what else tells one state of a file from another.
        block_file: (blocks,), the file of each block of rows.
        block_rows: (blocks,), its rows.
        block_bytes: (blocks,), what it takes in memory; 0 where its rows are read one by one.
        parts: (parts, 3), of tars: offset, size and position in `kinds` of each member; else empty.
        starts: (records + 1,), of tars: where the parts of each record begin.
        kinds: of tars: the extensions of members.
    """

    files: tuple[str, ...]
    states: tuple[tuple[int, str], ...]
    block_file: np.ndarray[Any, Any]
    block_rows: np.ndarray[Any, Any]
    block_bytes: np.ndarray[Any, Any]
    parts: np.ndarray[Any, Any]
    starts: np.ndarray[Any, Any]
    kinds: tuple[str, ...]


class Shards(ABC):
    """The rows of some files, by number.

    Args:
        path: a file, a folder, a pattern (`*`, `{000..015}`), or an fsspec URL of one.
        limit: only so many rows, the first ones.
        cache: the folder where what files hold is kept; None: it is not.
    """

    format = ""

    def __init__(self, path: str, limit: int | None, cache: Path | None = None) -> None:
        self.path, self.limit = path, limit
        files = named_files(path, SUFFIXES[self.format])
        states = tuple(self._state(file) for file in files)
        self.index = self._opened_index(files, states, cache)
        ends = np.cumsum(self.index.block_rows)
        if not len(ends) or not ends[-1]:
            raise DataError("there is no row in it", where=path, fix="name shards with rows")
        self.rows = int(ends[-1]) if limit is None else min(limit, int(ends[-1]))
        blocks = int(np.searchsorted(ends, self.rows)) + 1
        self.begins = np.concatenate([[0], np.minimum(ends[:blocks], self.rows)]).astype(np.int64)
        """(blocks + 1,), the first row of each block."""

    @property
    def identity(self) -> str:
        """Of the files by name and size, and of their rows."""
        names = [
            [PurePosixPath(f).name, size]
            for f, (size, _) in zip(self.index.files, self.index.states, strict=True)
        ]
        text = json.dumps([names, self.index.block_rows.tolist(), self.rows])
        return hashlib.sha256(text.encode()).hexdigest()

    def where(self, row: int) -> str:
        """The file of a row and its number in it."""
        block = self.block_of(row)
        file = int(self.index.block_file[block])
        first = int(np.searchsorted(self.index.block_file, file))
        return f"{PurePosixPath(self.index.files[file]).name}[{row - int(self.begins[first])}]"

    def block_of(self, row: int) -> int:
        """The block that holds a row."""
        return int(np.searchsorted(self.begins, row, "right")) - 1

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
    def _held(self, file: str) -> Iterator[tuple[int, int, list[list[tuple[str, int, int]]]]]:
        """Rows and bytes of each block of a file, and of a tar the members of each record."""

    def _opened_index(
        self, files: tuple[str, ...], states: tuple[tuple[int, str], ...], cache: Path | None
    ) -> Index:
        if cache is None:
            return self._built_index(files, states)
        text = json.dumps([_VERSION, self.format, self.limit, files, states])
        folder = cache.expanduser() / f"shards-{hashlib.sha256(text.encode()).hexdigest()[:32]}"
        if not (folder / "about.json").is_file():
            index = self._built_index(files, states)
            try:
                with new_folder(folder, what="the index of shards") as temporary:
                    for name in _ARRAYS:
                        np.save(temporary / f"{name}.npy", getattr(index, name))
                    write_json(temporary / "about.json", {"kinds": list(index.kinds)})
            except RecipeError:  # another process was faster
                pass
        try:
            kinds = tuple(json.loads((folder / "about.json").read_text(encoding="utf-8"))["kinds"])
            arrays = {
                name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS
            }
        except (OSError, ValueError, KeyError) as error:
            raise LockadaptError(
                f"the index is damaged: {error}", where=str(folder), fix="remove it"
            ) from error
        return Index(files, states, kinds=kinds, **arrays)

    def _built_index(self, files: tuple[str, ...], states: tuple[tuple[int, str], ...]) -> Index:
        blocks: list[tuple[int, int, int]] = []
        parts: list[tuple[int, int, int]] = []
        starts, kinds = [0], dict[str, int]()
        for number, file in enumerate(files):
            with reading(file):
                for rows, size, records in self._held(file):
                    blocks.append((number, rows, size))
                    for record in records:
                        for kind, offset, length in record:
                            parts.append((offset, length, kinds.setdefault(kind, len(kinds))))
                        starts.append(len(parts))
            if self.limit is not None and sum(block[1] for block in blocks) >= self.limit:
                break
        columns = np.asarray(blocks, np.int64).reshape(-1, 3)
        members = np.asarray(parts, np.int64).reshape(-1, 3)
        return Index(
            files,
            states,
            columns[:, 0],
            columns[:, 1],
            columns[:, 2],
            members,
            np.asarray(starts),
            tuple(kinds),
        )

    def _state(self, file: str) -> tuple[int, str]:
        with reading(file):
            system, path = filesystem(file)
            return int(system.info(path)["size"] or 0), str(system.ukey(path))

    def _refuse_changed(self, number: int) -> None:
        file = self.index.files[number]
        if self._state(file) != self.index.states[number]:
            raise DataError(
                "the file has changed since the run began",
                where=file,
                fix="leave shards alone while they are read; start again",
            )


_ARRAYS = ("block_file", "block_rows", "block_bytes", "parts", "starts")


class ParquetShards(Shards):
    """Parquet files; a block is a row group, read when a row of it is, and kept for the next ones."""

    format = "parquet"

    @cached_property
    def _kept(self) -> OrderedDict[int, Any]:
        return OrderedDict()

    def row(self, row: int) -> Any:
        """Reads a row.

        Args:
            row: its number.

        Returns:
            Its values by column.
        """
        block = self.block_of(row)
        if block not in self._kept:
            self._kept[block] = self._read(block)
            while len(self._kept) > 1 and sum(table.nbytes for table in self._kept.values()) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(block)
        values: dict[str, Any] = self._kept[block].slice(row - int(self.begins[block]), 1).to_pylist()[0]
        return values

    def _read(self, block: int) -> Any:
        import pyarrow.parquet as pq

        number = int(self.index.block_file[block])
        file = self.index.files[number]
        self._refuse_changed(number)
        first = int(np.searchsorted(self.index.block_file, number))
        with reading(file):
            system, path = filesystem(file)
            with system.open(path, "rb") as opened, pq.ParquetFile(opened) as shard:
                return shard.read_row_group(block - first)

    def _held(self, file: str) -> Iterator[tuple[int, int, list[list[tuple[str, int, int]]]]]:
        import pyarrow.parquet as pq

        system, path = filesystem(file)
        with system.open(path, "rb") as opened, pq.ParquetFile(opened) as shard:
            for group in range(shard.metadata.num_row_groups):
                told = shard.metadata.row_group(group)
                if told.total_byte_size > LARGEST_BLOCK:
                    raise SafetyError(
                        f"row group {group} has {told.total_byte_size:,} bytes, more than {LARGEST_BLOCK:,}",
                        where=file,
                        fix="write it with smaller row groups (row_group_size=1000)",
                    )
                yield told.num_rows, told.total_byte_size, []


class TarShards(Shards):
    """WebDataset tars; a block is a tar, and each record is read by itself, where it lies.

    Members whose names are equal up to the first dot are one record. `.json` gives a row's values, images
    its `image` or `images`, `.txt` its `caption` (or `text`), and other texts the value of their extension.
    """

    format = "webdataset"

    def row(self, row: int) -> Any:
        """Reads a record.

        Args:
            row: its number.

        Returns:
            Its values by name.

        Raises:
            DataError: it is too large, or its JSON cannot be used.
        """
        where, number = self.where(row), int(self.index.block_file[self.block_of(row)])
        parts = self.index.parts[self.index.starts[row] : self.index.starts[row + 1]].tolist()
        begin = min(offset for offset, _, _ in parts)
        end = max(offset + size for offset, size, _ in parts)
        if end - begin > LARGEST_RECORD:
            raise DataError(
                f"the record has {end - begin:,} bytes, more than {LARGEST_RECORD:,}",
                where=where,
                fix="leave it out, or keep large files elsewhere",
            )
        self._refuse_changed(number)
        file = self.index.files[number]
        with reading(file):
            system, path = filesystem(file)
            data = system.cat_file(path, start=begin, end=end)
        members = [(self.index.kinds[kind], data[at - begin : at - begin + size]) for at, size, kind in parts]
        return _row_of(members, where)

    def _held(self, file: str) -> Iterator[tuple[int, int, list[list[tuple[str, int, int]]]]]:
        system, path = filesystem(file)
        records: list[list[tuple[str, int, int]]] = []
        last = None
        # Plain tars only: what is packed cannot be read from the middle.
        with system.open(path, "rb") as opened, tarfile.open(fileobj=opened, mode="r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # else all are kept
                folder, _, name = member.name.rpartition("/")
                key, _, kind = name.partition(".")
                kind = kind.lower()
                if not member.isreg() or member.issparse() or not key or not _is_used(kind):
                    continue
                if (folder, key) != last:
                    records.append([])
                    last = folder, key
                records[-1].append((kind, member.offset_data, member.size))
        if records:
            yield len(records), 0, records


KINDS: dict[str, type[Shards]] = {"parquet": ParquetShards, "webdataset": TarShards}


def _is_used(kind: str) -> bool:
    return kind == "json" or kind in TEXTS or kind.rpartition(".")[2] in IMAGES


def _row_of(members: Sequence[tuple[str, bytes]], where: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    images: list[bytes] = []
    for kind, data in members:
        if kind == "json":
            values = parsed_line(data, f"{where}:1")
            if not isinstance(values, dict):
                raise DataError(
                    "the JSON of the record is no object",
                    where=where,
                    fix='write {"question": ..., "answer": ...}, or several questions as `messages`',
                )
            row |= {key: value for key, value in values.items() if key not in row}
        elif kind in TEXTS:
            try:
                row[kind] = data.decode()
            except UnicodeDecodeError as error:
                raise DataError(f".{kind} is not UTF-8", where=where, fix="write it as UTF-8") from error
        else:
            images.append(data)
    if "txt" in row:
        row.setdefault("caption", row["txt"])
        row.setdefault("text", row["txt"])
    if images:
        row.pop("images", None)
        row["image"] = images[0] if len(images) == 1 else images
    return row


def named_files(path: str, suffixes: tuple[str, ...]) -> tuple[str, ...]:
    """The files that a path names, in the order of their names.

    Args:
        path: see `Shards`.
        suffixes: of files in a folder.

    Returns:
        At least one, as fsspec takes them.

    Raises:
        DataError: there is none, or fsspec cannot open it.
        SafetyError: another kind of fsspec URL than those of `PROTOCOLS`.
    """
    with reading(path):
        if (braces := _BRACES.search(path)) is not None:
            first, last = int(braces[1]), int(braces[2])
            if not 0 <= last - first < _MOST_FILES:
                raise DataError(f"{braces[0]} counts no files", where=path, fix="write `{000..015}`")
            width = len(braces[1])
            return tuple(
                file
                for number in range(first, last + 1)
                for file in named_files(
                    f"{path[: braces.start()]}{number:0{width}d}{path[braces.end() :]}", suffixes
                )
            )
        system, plain = filesystem(path)
        if any(mark in plain for mark in "*?["):
            names = sorted(system.glob(plain))
        elif system.isdir(plain):
            names = sorted(file for file in system.find(plain) if file.lower().endswith(suffixes))
        else:
            return (system.unstrip_protocol(plain),)
    if not names:
        raise DataError(f"there is no {' or '.join(suffixes)} file in it", where=path, fix="correct `path`")
    return tuple(system.unstrip_protocol(file) for file in names)


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, of this process, and the path in it.

    Args:
        url: a path, or a URL that a user named.

    Returns:
        Both.

    Raises:
        SafetyError: another kind of URL than those of `PROTOCOLS`.
        DataError: a package for it is missing.
    """
    import fsspec

    protocol, separator, _ = url.partition("://")
    if "::" in url or (separator and protocol not in PROTOCOLS):
        raise SafetyError(
            "such a URL is not opened", where=url, fix="name a plain URL of: " + ", ".join(PROTOCOLS)
        )
    try:
        # An own one for each process: those that talk to a network do not outlive a fork.
        system, path = fsspec.core.url_to_fs(url if separator else os.path.abspath(os.path.expanduser(url)))
    except ImportError as error:
        raise DataError(f"cannot be opened: {error}", where=url, fix="install that package") from error
    return system, path


class reading:  # noqa: N801 - used as a function is
    """Block that reads a shard: whatever the libraries raise becomes a typed error.

    Args:
        name: of the shard.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        """No-op."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Raises a DataError for what the block raised, but for typed errors and lack of memory."""
        if error is None or isinstance(error, LockadaptError) or not isinstance(error, Exception):
            return
        if memory_ran_out(error):
            return
        if isinstance(error, FileNotFoundError):
            raise DataError("no such file", where=self.name, fix="correct `path`") from error
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise DataError(
            f"cannot be read: {type(error).__name__}: {first}",
            where=self.name,
            fix="check that it is whole and of this format (a tar must not be packed)",
        ) from error
