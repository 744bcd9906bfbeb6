"""Reads shards whose rows hold their images, one row after the other: parquet, WebDataset tars."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lockadapt.data.paths import DataRoot
from lockadapt.data.problems import ROW_ERRORS
from lockadapt.data.readers.columns import RowRules, rules_for
from lockadapt.data.readers.pictures import Pictures
from lockadapt.data.readers.rows import read_rows
from lockadapt.data.readers.source import Source
from lockadapt.data.sample import Sample
from lockadapt.data.shards import open_shards
from lockadapt.data.shards.base import Shards


def read_parquet(source: Source) -> Iterator[Sample]:
    """Reads parquet files; image cells hold bytes, or the structs that `datasets` writes.

    Args:
        source: the files, and their columns.

    Returns:
        An iterator over the samples.

    Raises:
        DataError, SafetyError: a file cannot be read; and as `read_rows` for what the rows hold.
        RecipeError: as `Source.check`.
    """
    return _read("parquet", source)


def read_tars(source: Source) -> Iterator[Sample]:
    """Reads WebDataset tars; nothing is unpacked.

    Args:
        source: the files, and their columns.

    Returns:
        An iterator over the samples.

    Raises:
        DataError, SafetyError: a file cannot be read; and as `read_rows` for what the rows hold.
        RecipeError: as `Source.check`.
    """
    return _read("webdataset", source)


def shard_rules(source: Source) -> RowRules:
    """By what a row becomes samples; names of files are relative to `images`, and mean nothing without it."""
    root = None if source.images is None else source.image_root(Path(source.images))
    return rules_for(source, Pictures(root if isinstance(root, DataRoot) else None, source.image_name))


def _read(format: str, source: Source) -> Iterator[Sample]:
    rules = shard_rules(source)
    shards = open_shards(format, str(source.path), source.limit, skip=source.bad_rows)
    return read_rows(source, _rows(shards), rules)


def _rows(shards: Shards) -> Iterator[tuple[str, Any]]:
    for row in range(shards.rows):
        where = shards.where(row)
        try:
            yield where, shards.row(row)
        except ROW_ERRORS as error:
            yield where, error
