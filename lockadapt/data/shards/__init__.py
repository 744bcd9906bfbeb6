"""Shards that hold rows with their images: parquet files and WebDataset tars, local or where fsspec reads."""

from __future__ import annotations

from pathlib import Path

from lockadapt.data.problems import BadRows
from lockadapt.data.shards.base import Shards
from lockadapt.data.shards.files import named_files
from lockadapt.data.shards.parquet import ParquetShards
from lockadapt.data.shards.tar import TarShards

KINDS: dict[str, type[Shards]] = {"parquet": ParquetShards, "webdataset": TarShards}


def open_shards(
    format: str, path: str, limit: int | None = None, cache: Path | None = None, skip: BadRows | None = None
) -> Shards:
    """Finds the shards that a path names, and what they hold.

    Args:
        format: a key of `KINDS`.
        path: a file, a folder, a pattern (`*`, `{000..015}`), or an fsspec URL of one.
        limit: only so many rows, the first ones.
        cache: the folder where what files hold is kept; None: it is not.
        skip: files that cannot be read may be left out, within its limit; None: none may.

    Returns:
        The rows.

    Raises:
        DataError: there is no such file, or one cannot be read.
        SafetyError: another kind of URL than those that read bytes, or a row group is too large.
    """
    kind = KINDS[format]
    return kind(path, named_files(path, kind.suffixes), limit, cache, skip)
