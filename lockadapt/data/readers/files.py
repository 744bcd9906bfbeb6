"""Text files of rows, read whole: UTF-8 only, plain or gzip, JSON or JSON lines."""

from __future__ import annotations

import codecs
import contextlib
import errno
import gzip
import itertools
import json
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from lockadapt.data.paths import refuse_pickle
from lockadapt.errors import DataError, DiskError, SafetyError

LARGEST_UNPACKED = 4 * 1024**3
"""The most bytes that a .gz file may unpack to."""

LARGEST_TEXT = 4 * 1024**3
"""The most bytes of a file that is read whole (JSON, CSV)."""
LONGEST_LINE = 32 * 1024**2
"""The most bytes of one row in JSON lines; a row may hold an image in base64."""

_LINE_FIX = "each line holds one JSON object or list; a file that is one list over many lines is named .json"

WEBDATASET = "as WebDataset has them, and archives are not read"
WEBDATASET_FIX = (
    "unpack it (tar xf) and write a row a line about its files, such as "
    '{"image": "000000.jpg", "question": "...", "answer": "..."}'
)

LINE_SUFFIXES = (".jsonl", ".ndjson")


def read_text(path: Path) -> str:
    """Read a text file; a UTF-8 byte-order mark is dropped, `.gz` unpacked.

    Args:
        path: the file.

    Returns:
        Its text.

    Raises:
        DataError: missing, a folder, empty, not UTF-8, or a damaged gzip.
        DiskError: the file exists but cannot be read.
        SafetyError: pickle, or a .gz that unpacks to more than `LARGEST_UNPACKED` bytes.
    """
    where = str(path)
    with _reading(path):
        data = _bounded(path)
    if not data.strip():
        raise _empty(where)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(error, where, data.count(b"\n", 0, error.start) + 1) from error


def text_lines(path: Path) -> Generator[tuple[int, str | DataError], None, None]:
    """Read the lines of a text file one by one, so that neither a long file nor a long line takes memory.

    Args:
        path: the file, perhaps `.gz`; a UTF-8 byte-order mark is dropped.

    Yields:
        (number from 1, line without its end), or the error that a line longer than `LONGEST_LINE` is. Blank
        lines are left out.

    Raises:
        DataError: missing, a folder, empty, not UTF-8, or a damaged gzip.
        DiskError: the file exists but cannot be read.
        SafetyError: pickle, or a .gz that unpacks to more than `LARGEST_UNPACKED` bytes.
    """
    where, total, empty = str(path), 0, True
    packed = path.suffix.lower() == ".gz"
    with _reading(path), gzip.open(path) if packed else path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(LONGEST_LINE + 1)
            if not line:
                break
            total += len(line)
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            whole = len(line) <= LONGEST_LINE
            rest = b"" if whole or line.endswith(b"\n") else line
            while rest and not rest.endswith(b"\n"):
                rest = file.readline(LONGEST_LINE)
                total += len(rest)
            if packed and total > LARGEST_UNPACKED:
                raise _too_large(path)
            if not whole:
                empty = False
                yield number, _too_long(f"{path.name}:{number}")
            elif not line.isspace():
                empty = False
                try:
                    text = line.decode()
                except UnicodeDecodeError as error:
                    raise _not_utf8(error, where, number) from error
                yield number, text.removesuffix("\n")
    if empty:
        raise _empty(where)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Block that reads a file of rows: what may go wrong with it becomes a typed error."""
    where = str(path)
    try:
        path.stat()
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise DataError(
                f"cannot be a file: {error.strerror}", where=where, fix="correct `path`"
            ) from error
    if path.is_dir():
        raise DataError("this is a folder, not a file", where=where, fix="name the file with the rows")
    if not path.exists():
        raise DataError("no such file", where=where, fix="correct `path`, or download the data first")
    if not path.is_file():
        raise DataError("this is a pipe or a device, not a file", where=where, fix="write the rows to a file")
    if path.suffix.lower() in (".tar", ".tgz") or path.name.lower().endswith((".tar.gz", ".tar.zst")):
        raise DataError(f"this is an archive, {WEBDATASET}", where=where, fix=WEBDATASET_FIX)
    try:
        refuse_pickle(path)
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"the gzip file is damaged or cut off ({error})", where=where, fix="fetch the file again"
        ) from error
    except OSError as error:
        raise DiskError(
            f"cannot be read: {error.strerror}", where=where, fix="check its permissions"
        ) from error


def _empty(where: str) -> DataError:
    return DataError("the file is empty", where=where, fix="fetch or write the data again")


def _not_utf8(error: UnicodeDecodeError, where: str, line: int) -> DataError:
    return DataError(
        f"byte {error.object[error.start]:#04x} is not UTF-8",
        where=f"{where}:{line}",
        fix="save the file as UTF-8 (iconv -t UTF-8); if it is no text file, choose another `format`",
    )


def _too_long(where: str) -> DataError:
    return DataError(
        f"the line has more than {LONGEST_LINE:,} bytes",
        where=where,
        fix="write one row a line (a file that is one list is named .json); keep images in files",
    )


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Args:
        path: the file, perhaps `.gz`.

    Returns:
        Its value.

    Raises:
        DataError: as `read_text`, or the JSON is invalid.
    """
    return _parsed(read_text(path), str(path), path)


def read_rows(path: Path) -> Generator[tuple[str, Any], None, None]:
    """Read rows of a `.jsonl` file, or of a `.json` file that is one list, each with its place.

    A line that is no JSON comes out as the `DataError` that it deserves, so that the caller can gather
    several. Blank lines are skipped, CRLF is a line end like LF.

    Args:
        path: the file.

    Yields:
        (place, row).

    Raises:
        DataError: as `read_text`, or a `.json` file holds no list.
    """
    suffix = Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()
    if suffix in LINE_SUFFIXES:
        for number, line in text_lines(path):
            where = f"{path.name}:{number}"
            if isinstance(line, DataError):
                yield where, line
                continue
            try:
                yield where, _row(line, where)
            except DataError as error:
                yield where, error
        return
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DataError(
            "the JSON file holds no list of rows",
            where=str(path),
            fix="write one list `[row, row, ...]`, or one row a line in a file named .jsonl",
        )
    for number, row in enumerate(rows):
        yield f"{path.name}[{number}]", row


def parsed_line(line: bytes, where: str) -> Any:
    """The row that one line of JSON lines holds.

    Args:
        line: without its end.
        where: its place, for messages.

    Returns:
        The value.

    Raises:
        DataError: it is too long, not UTF-8, or invalid.
    """
    if len(line) > LONGEST_LINE:
        raise _too_long(where)
    try:
        return _row(line.decode(), where)
    except UnicodeDecodeError as error:
        file, _, number = where.rpartition(":")
        raise _not_utf8(error, file, int(number)) from error


def _row(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _invalid(error, where, _LINE_FIX) from error


def _bounded(path: Path) -> bytes:
    """All bytes of a file, of a .gz those that it unpacks to."""
    if path.suffix.lower() == ".gz":
        with gzip.open(path) as file:
            data = file.read(LARGEST_UNPACKED + 1)
        if len(data) > LARGEST_UNPACKED:
            raise _too_large(path)
        return data
    if path.stat().st_size > LARGEST_TEXT:
        raise DataError(
            f"the file has more than {LARGEST_TEXT:,} bytes",
            where=str(path),
            fix="write its rows as JSON lines (.jsonl), which are read one by one",
        )
    return path.read_bytes()


def _too_large(path: Path) -> SafetyError:
    return SafetyError(
        f"unpacks to more than {LARGEST_UNPACKED:,} bytes",
        where=str(path),
        fix="unpack it yourself if you trust it",
    )


def _parsed(text: str, where: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        fix = "fix the file, or write it with a JSON library"
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            fix = f"if it holds one row a line, name it {path.stem}.jsonl"
        raise _invalid(error, where + line, fix) from error


def _invalid(error: Exception, where: str, fix: str) -> DataError:
    reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    return DataError(f"invalid JSON: {reason}", where=where, fix=fix)
