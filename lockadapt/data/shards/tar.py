"""WebDataset tars: each record is read by itself, where it lies; nothing is unpacked."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

from lockadapt.data.readers.files import parsed_line
from lockadapt.data.shards.base import Shards
from lockadapt.data.shards.files import filesystem, reading
from lockadapt.data.shards.index import Block, Record
from lockadapt.errors import DataError

LARGEST_RECORD = 256 * 1024**2
"""The most bytes of one record."""
_LARGEST_HEADER = 1024**2
"""The most bytes of one header of a member; long names have headers of their own."""

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif", "jp2")
TEXTS = ("txt", "text", "caption", "question", "answer")


class TarShards(Shards):
    """Rows of tars; a block is a tar; see `Shards`.

    Members whose names are equal up to the first dot are one record. `.json` gives a row's values, images
    its `image` or `images`, `.txt` its `caption` (or `text`), and other texts the value of their extension.
    """

    format = "webdataset"
    suffixes = (".tar",)

    def where(self, row: int) -> str:
        """The file of a row, and the name of its members up to the first dot."""
        return f"{self._name(int(self.index.block_file[self.block_of(row)]))}:{self.index.name(row)}"

    def row(self, row: int) -> Any:
        """Reads a record.

        Args:
            row: its number.

        Returns:
            Its values by name.

        Raises:
            DataError: it is too large, or its JSON cannot be used.
        """
        where, file = self.where(row), self._block(self.block_of(row))
        parts = self.index.parts[self.index.starts[row] : self.index.starts[row + 1]].tolist()
        begin = min(offset for offset, _, _ in parts)
        end = max(offset + size for offset, size, _ in parts)
        if end - begin > LARGEST_RECORD:
            raise DataError(
                f"the record has {end - begin:,} bytes, more than {LARGEST_RECORD:,}",
                where=where,
                fix="leave it out, or keep large files elsewhere",
            )
        with reading(where):
            system, path = filesystem(file)
            data = system.cat_file(path, start=begin, end=end)
        members = [(self.index.kinds[kind], data[at - begin : at - begin + size]) for at, size, kind in parts]
        return _row_of(members, where)

    def _read(self, block: int) -> tuple[Any, int]:
        return self.files[int(self.index.block_file[block])], 0

    def _held(self, file: str) -> Iterator[Block]:
        system, path = filesystem(file)
        records: list[Record] = []
        last, offset = None, -1
        # Plain tars only: what is packed cannot be read from the middle.
        with (
            system.open(path, "rb") as opened,
            tarfile.open(fileobj=_Headers(opened, file), mode="r:") as archive,  # type: ignore[call-overload]
        ):
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # else all are kept
                if member.offset <= offset:
                    raise DataError("its members go in a circle", where=file, fix="fetch it again")
                offset = member.offset
                folder, _, name = member.name.rpartition("/")
                key, _, kind = name.partition(".")
                kind = kind.lower()
                if not member.isreg() or member.issparse() or not key or not _is_used(kind):
                    continue
                if (folder, key) != last:
                    records.append(Record(_printable(f"{folder}/{key}" if folder else key)))
                    last = folder, key
                records[-1].parts.append((kind, member.offset_data, member.size))
            # What is no header silently ends a tar, whatever is behind it.
            opened.seek(archive.offset)
            behind = opened.read(tarfile.BLOCKSIZE)
            if behind and behind != bytes(tarfile.BLOCKSIZE):
                raise DataError(
                    f"is damaged or cut off at byte {archive.offset:,}", where=file, fix="fetch it again"
                )
        if records:
            yield Block(len(records), 0, records)


class _Headers:
    """A file of which only headers are read, none of them large, whatever size it claims.

    Args:
        file: is read.
        where: its name, for messages.
    """

    def __init__(self, file: Any, where: str) -> None:
        self.file, self.where, self.tell, self.seek = file, where, file.tell, file.seek

    def read(self, size: int) -> bytes:
        """Reads so many bytes."""
        if not 0 <= size <= _LARGEST_HEADER:
            raise DataError(
                f"a member's header claims {size:,} bytes",
                where=self.where,
                fix="fetch it again, or remove it",
            )
        data: bytes = self.file.read(size)
        return data


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _is_used(kind: str) -> bool:
    return kind == "json" or kind in TEXTS or kind.rpartition(".")[2] in IMAGES


def _row_of(members: Sequence[tuple[str, bytes]], where: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    images: list[bytes] = []
    for kind, data in members:
        if kind == "json":
            values = parsed_line(data, f"{where}.json:1")
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
