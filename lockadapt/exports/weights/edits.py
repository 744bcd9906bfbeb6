"""Computes pieces of one stored matrix: read rows, dequantize as trained, change, round once, write."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lockadapt.errors import AdapterError, VerificationError
from lockadapt.exports.weights.changes import WeightUpdate, touched
from lockadapt.exports.weights.requantized import QuantizationRoundTrip
from lockadapt.models.safetensors_file import StoredTensor

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Stored dtypes that arithmetic is done on; others are only copied."""
PIECE_BYTES = 1 << 18
"""Bytes of stored values in a piece: its float32 copies stay in a core's cache and its memory is small (4 MiB
pieces take half as long again; 1 MiB, 17 MiB more)."""
GPU_PIECE_BYTES = 1 << 22
"""Bytes of a piece that a GPU computes, where every piece waits for copies and kernels to start (measured on
an H100: 16 MiB pieces on 4 threads take 1.8 times as long as these on 8)."""

MIN_ROWS = 16
"""Fewest rows in a piece of several: products of less than four rows are summed in another order (measured,
MKL), and pieces must give the bits of the whole."""


@dataclass(frozen=True)
class TensorWrite:
    """What becomes of one tensor.

    Attributes:
        stored: where it is read; `offset`: where it is written, in bytes of the new file.
        changes: in order; `base`: how the stored values are taken, None as they are.
        piece_bytes: of stored values in a piece.
    """

    stored: StoredTensor
    offset: int
    changes: tuple[WeightUpdate, ...]
    base: QuantizationRoundTrip | None = None
    piece_bytes: int = PIECE_BYTES
    _shared: list[Any] = field(default_factory=list, repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """The tensor's shape as a matrix of rows of the last dimension."""
        shape = self.stored.shape
        if not shape:
            return 1, 1
        return math.prod(shape[:-1]), shape[-1]

    @property
    def item(self) -> int:
        """Bytes of a value."""
        return DTYPES[self.stored.dtype].itemsize

    def pieces(self) -> list[tuple[int, int]]:
        """Ranges of rows that are computed, each of about `piece_bytes`; the others stay as they are."""
        rows = self.shape[0]
        spans = [(0, rows)] if self.base else touched(self.changes, rows)
        return [piece for first, last in spans for piece in _divided(first, last, self._step())]

    def compute(self, source: int, target: int, first: int, last: int, device: torch.device) -> None:
        """Reads rows from one open file and writes them, changed, into another.

        Args:
            source: descriptor of the file to read.
            target: descriptor of the file to write.
            first: the first row.
            last: the row behind the last one.
            device: where it is computed.

        Raises:
            VerificationError: a value is no longer finite in the stored dtype.
        """
        stored = self._read(source, first, last, pinned=device.type == "cuda")
        exact = torch.float64 if stored.dtype == torch.float64 else torch.float32
        if self.base is None:
            matrix = stored.to(device, exact)
        else:
            matrix = self.base.rows(stored.to(device), first, self._prepared(source, device))
        for change in self.changes:
            change.apply(matrix, first)
        stored.copy_(matrix)
        low, high = torch.aminmax(matrix)  # NaN if there is one
        limit = torch.finfo(stored.dtype).max
        if not (-limit <= float(low) and float(high) <= limit):
            raise VerificationError(
                f"a merged value does not fit {self.stored.dtype}",
                where=self.stored.key,
                fix="look at the adapter",
            )
        _write(target, _bytes(stored), self.offset + first * self.shape[1] * self.item)

    def _step(self) -> int:
        rows, columns = self.shape
        if not all(change.by_rows for change in self.changes):
            return rows
        step = max(MIN_ROWS, self.piece_bytes // max(1, columns * self.item))
        if self.base is not None:
            rows_at_once = self.base.rows_at_once(rows, columns)
            step = max(rows_at_once, step // rows_at_once * rows_at_once)
        return step

    def _prepared(self, source: int, device: torch.device) -> Any:
        assert self.base is not None
        with self._lock:
            if not self._shared:

                def read(first: int, last: int) -> Tensor:
                    return self._read(source, first, last).to(device)

                self._shared.append(self.base.prepare(read, self.shape[0], self._step()))
        return self._shared[0]

    def _read(self, source: int, first: int, last: int, pinned: bool = False) -> Tensor:
        columns = self.shape[1]
        stored = torch.empty(last - first, columns, dtype=DTYPES[self.stored.dtype], pin_memory=pinned)
        view, start = _bytes(stored), self.stored.begin + first * columns * self.item
        while view:
            got = os.preadv(source, [view], start)
            if not got:
                raise VerificationError("the file became shorter while it was read", where=self.stored.key)
            view, start = view[got:], start + got
        return stored


def _divided(first: int, last: int, step: int) -> list[tuple[int, int]]:
    starts = list(range(first, last, step))
    if len(starts) > 1 and last - starts[-1] < MIN_ROWS:
        starts.pop()
    return list(zip(starts, [*starts[1:], last], strict=True))


def require_fit(stored: StoredTensor, changes: Sequence[WeightUpdate], shape: tuple[int, ...]) -> None:
    """Checks a stored tensor against the stock parameter that changes are meant for.

    Args:
        stored: where the tensor is stored.
        changes: what is to be done to it.
        shape: of the stock parameter.

    Raises:
        VerificationError: it has another shape.
        AdapterError: it is stored in a dtype that nothing is added to.
    """
    if stored.shape != shape:
        raise VerificationError(
            f"has the shape {stored.shape}, but its model class expects {shape}",
            where=stored.key,
            fix="config.json and the weights do not belong together",
        )
    if stored.dtype not in DTYPES:
        raise AdapterError(
            f"is stored as {stored.dtype}, which nothing can be added to",
            where=stored.key,
            fix="merge into a copy in bfloat16 or float32",
        )


def _bytes(tensor: Tensor) -> memoryview:
    array: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(array) if tensor.numel() else memoryview(b"")


def _write(target: int, view: memoryview, offset: int) -> None:
    while view:
        done = os.pwrite(target, view, offset)
        view, offset = view[done:], offset + done
