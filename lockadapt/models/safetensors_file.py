"""Headers of safetensors files: where each tensor lies, checked against the file's size, nothing loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lockadapt.errors import DataError

AGAIN = "download or export the folder again"
MAX_HEADER = 100_000_000
"""Bytes; what safetensors itself accepts."""
ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "C64": 8,
}
"""Bytes of an item, for the dtypes of safetensors headers whose items are whole bytes."""


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: a dtype of safetensors, a shape, and byte offsets from the start of its file."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def rows(self, first: int, last: int) -> StoredTensor:
        """The part that holds entries `first` to `last` (half-open) of the first dimension, under its key."""
        row = (self.end - self.begin) // max(1, self.shape[0])
        begin, end = self.begin + first * row, self.begin + last * row
        return replace(self, shape=(last - first, *self.shape[1:]), begin=begin, end=end)


@dataclass(frozen=True)
class Shard:
    """One file.

    Attributes:
        size: of the file, in bytes.
        metadata: what its header says beside tensors.
        tensors: tensors in the order of their bytes, the first right behind the header.
    """

    path: Path
    size: int
    metadata: Mapping[str, str]
    tensors: tuple[StoredTensor, ...]

    @property
    def data_start(self) -> int:
        """Bytes of the header and its length."""
        return self.tensors[0].begin if self.tensors else self.size


def read_shard(path: Path) -> Shard:
    """Reads a safetensors file's header and checks it against the file's size; errors as `read_layout`."""
    where = str(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(size - 8, MAX_HEADER):
            raise DataError("is no safetensors file, or is truncated", where=where, fix=AGAIN)
        raw = file.read(length)
    header = parse_json(raw, where)
    if not isinstance(header, dict):
        raise DataError("its header is no table of tensors", where=where, fix=AGAIN)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise DataError("its metadata is no table of texts", where=where, fix=AGAIN)
    tensors = sorted((_stored(key, entry, 8 + length, where) for key, entry in header.items()), key=_order)
    end = 8 + length
    for tensor in tensors:
        if tensor.begin != end:
            kind = "overlaps the tensor before it" if tensor.begin < end else "leaves a hole before it"
            raise DataError(kind, where=f"{where}: {tensor.key}", fix=AGAIN)
        end = tensor.end
    if end != size:
        problem = (
            f"{end - size} bytes are missing at its end"
            if end > size
            else f"{size - end} bytes too many at its end"
        )
        raise DataError(problem, where=where, fix=AGAIN)
    return Shard(path, size, metadata, tuple(tensors))


def header_bytes(shard: Shard, keys: Mapping[str, str]) -> bytes:
    """Length and header of a shard whose tensors get new keys in their order; the original's if none does."""
    if all(keys[tensor.key] == tensor.key for tensor in shard.tensors):
        with open(shard.path, "rb") as file:
            return file.read(shard.data_start)
    table: dict[str, Any] = {"__metadata__": dict(shard.metadata)} if shard.metadata else {}
    for tensor in shard.tensors:
        offsets = [tensor.begin - shard.data_start, tensor.end - shard.data_start]
        table[keys[tensor.key]] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # data starts at a multiple of 8, as the format asks
    return len(text).to_bytes(8, "little") + text


def _order(tensor: StoredTensor) -> tuple[int, int]:
    return tensor.begin, tensor.end


def _stored(key: str, entry: Any, start: int, where: str) -> StoredTensor:
    where = f"{where}: {key}"
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError) as error:
        raise DataError("its entry in the header is broken", where=where, fix=AGAIN) from error
    if not whole or begin > end:
        raise DataError("its shape or its offsets are broken", where=where, fix=AGAIN)
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise DataError(f"has the dtype {dtype!r}, which lockadapt does not know", where=where)
    if math.prod(shape) * ITEM_BYTES[dtype] != end - begin:
        raise DataError(f"{end - begin} bytes do not hold {dtype} of shape {shape}", where=where, fix=AGAIN)
    return StoredTensor(key, dtype, tuple(shape), start + begin, start + end)


def parse_json(raw: bytes, where: str) -> Any:
    """JSON in which no key stands twice; a DataError that names `where` otherwise."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            twice = sorted(key for key in table if sum(key == other for other, _ in pairs) > 1)
            raise DataError(f"names {twice[0]!r} twice", where=where, fix=AGAIN)
        return table

    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise DataError(f"is no JSON: {error}", where=where, fix=AGAIN) from error
