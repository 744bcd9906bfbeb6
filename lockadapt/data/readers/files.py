"""Text files of rows, read whole: UTF-8 only, plain or gzip, JSON or JSON lines."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

from lockadapt.data.paths import refuse_pickle
from lockadapt.errors import DataError, DiskError, SafetyError

LARGEST_UNPACKED = 4 * 1024**3
"""The most bytes that a .gz file may unpack to."""

_LINE_FIX = "each line holds one JSON object or list; a file that is one list over many lines is named .json"

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
    if path.is_dir():
        raise DataError("this is a folder, not a file", where=where, fix="name the file with the rows")
    if not path.is_file():
        raise DataError("no such file", where=where, fix="correct `path`, or download the data first")
    try:
        refuse_pickle(path)
        data = _unpacked(path) if path.suffix.lower() == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"the gzip file is damaged or cut off ({error})", where=where, fix="fetch the file again"
        ) from error
    except OSError as error:
        raise DiskError(
            f"cannot be read: {error.strerror}", where=where, fix="check its permissions"
        ) from error
    if not data.strip():
        raise DataError("the file is empty", where=where, fix="fetch or write the data again")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"byte {data[error.start]:#04x} is not UTF-8",
            where=f"{where}:{line}",
            fix="save the file as UTF-8 (iconv -t UTF-8); if it is no text file, choose another `format`",
        ) from error


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
        # Not splitlines(): JSON strings may hold U+2028 and other characters that it takes for line ends.
        for number, line in enumerate(read_text(path).split("\n"), start=1):
            if line and not line.isspace():
                where = f"{path.name}:{number}"
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield where, _invalid(error, where, _LINE_FIX)
                else:
                    yield where, row
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


def _unpacked(path: Path) -> bytes:
    with gzip.open(path) as file:
        data = file.read(LARGEST_UNPACKED + 1)
    if len(data) > LARGEST_UNPACKED:
        raise SafetyError(
            f"unpacks to more than {LARGEST_UNPACKED:,} bytes",
            where=str(path),
            fix="unpack it yourself if you trust it",
        )
    return data


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
