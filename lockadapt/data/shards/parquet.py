"""Parquet files: a block is a row group, read when a row of it is, and kept for the next ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from lockadapt.data.readers.features import told_decoders
from lockadapt.data.shards.base import Shards
from lockadapt.data.shards.files import filesystem, reading
from lockadapt.data.shards.index import Block
from lockadapt.errors import DataError, SafetyError

LARGEST_BLOCK = 1024**3
"""The most bytes of one row group, as the file's footer says them."""
LARGEST_UNTOLD, _UNTOLD = 256 * 1024**2, 4
"""The most bytes that it may unpack to: so many, or so many times what the footer says."""
_MOST_ROWS = 1 << 24
"""Of one row group."""
_AT_ONCE = 64 * 1024**2
"""Bytes that rows which are unpacked together may have, as far as the footer tells."""


class ParquetShards(Shards):
    """Rows of parquet files; see `Shards`."""

    format = "parquet"
    suffixes = (".parquet",)

    def row(self, row: int) -> Any:
        """Reads a row.

        Args:
            row: its number.

        Returns:
            Its values by column; class labels as their names.

        Raises:
            DataError: its row group cannot be read.
            SafetyError: its row group is larger than its file says.
        """
        block = self.block_of(row)
        table, decoders = self._block(block)
        with reading(self.where(row)):
            values = table.slice(row - int(self.begins[block]), 1).to_pylist()[0]
            return {key: decoders[key](value) if key in decoders else value for key, value in values.items()}

    def _read(self, block: int) -> tuple[Any, int]:
        import pyarrow as pa

        number = int(self.index.block_file[block])
        file = self.files[number]
        group = block - int(np.searchsorted(self.index.block_file, number))
        batches, size = [], 0
        with reading(f"{self._name(number)}: row group {group}"), _opened(file) as shard:
            told = shard.metadata.row_group(group)
            # A dictionary holds a long value once, however often rows have it: what they unpack to is not
            # told. No value is longer than the group.
            rows = max(1, min(told.num_rows, _AT_ONCE // max(told.total_byte_size, 1)))
            most = max(LARGEST_UNTOLD, _UNTOLD * told.total_byte_size)
            for batch in shard.iter_batches(rows, row_groups=[group], use_threads=False):
                size += batch.nbytes
                if size > most:
                    raise _too_large(group, f"unpacks to {size:,} bytes", most, file)
                batches.append(batch)
            table = pa.Table.from_batches(batches, shard.schema_arrow)
        pa.default_memory_pool().release_unused()
        return (table, told_decoders(table.schema.metadata)), size

    def _held(self, file: str) -> Iterator[Block]:
        with _opened(file) as shard:
            for group in range(shard.metadata.num_row_groups):
                told = shard.metadata.row_group(group)
                if told.total_byte_size > LARGEST_BLOCK:
                    raise _too_large(group, f"has {told.total_byte_size:,} bytes", LARGEST_BLOCK, file)
                if not 0 <= told.num_rows <= _MOST_ROWS:
                    raise DataError(
                        f"row group {group} claims {told.num_rows:,} rows", where=file, fix="write it again"
                    )
                if told.num_rows:
                    yield Block(told.num_rows, told.total_byte_size)


@contextlib.contextmanager
def _opened(file: str) -> Iterator[Any]:
    import pyarrow.parquet as pq

    system, path = filesystem(file)
    with (
        system.open(path, "rb") as opened,
        pq.ParquetFile(opened, page_checksum_verification=True) as shard,
    ):
        yield shard


def _too_large(group: int, size: str, most: int, file: str) -> SafetyError:
    return SafetyError(
        f"row group {group} {size}, more than {most:,}",
        where=file,
        fix="write it with smaller row groups (row_group_size=100)",
    )
