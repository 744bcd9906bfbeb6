"""A matrix after bitsandbytes has quantized and dequantized it: some rows at a time, exactly as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lockadapt.models.bitsandbytes import require_bitsandbytes
from lockadapt.models.four_bit import first_block_of_row

BLOCK, SCALE_BLOCK = 64, 256
"""Values that share a scale, and scales that share one in turn (double quantization, arXiv 2305.14314)."""

ReadRows = Callable[[int, int], Tensor]
"""Rows from, to -> the stored matrix's, in its own dtype."""


@dataclass(frozen=True)
class QuantizationRoundTrip:
    """A trained run's base as its layers multiplied with it.

    Attributes:
        kind: how the run's LLM was quantized.
        dtype: that the run computed in: quantized values come back rounded to it.
        on_cpu: whether it was trained on the CPU, which may misread scales
            (`four_bit.processor_misreads_scales`).
        transposed: the stored matrix is (in, out), as GPT-2's Conv1D keep theirs, and was quantized as (out,
            in); it is taken whole then.
    """

    kind: Literal["nf4", "int8"]
    dtype: torch.dtype
    on_cpu: bool = True
    transposed: bool = False

    def rows_at_once(self, rows: int, columns: int) -> int:
        """Rows that a piece must be a multiple of, so that no block of values is divided."""
        if self.transposed:
            return rows
        return 1 if self.kind == "int8" or columns % BLOCK == 0 else BLOCK

    def prepare(self, read: ReadRows, rows: int, step: int) -> Any:
        """What all pieces share: the whole matrix's scales, quantized themselves (nf4); nothing for int8."""
        if self.kind == "int8":
            return None
        require_bitsandbytes()
        import bitsandbytes.functional as bnb

        pieces = [(first, min(rows, first + step)) for first in range(0, rows, step)]
        scales = torch.cat([self._quantized(self._turned(read(*piece)))[1].absmax for piece in pieces])
        offset = scales.mean()
        codes, state = bnb.quantize_blockwise(scales - offset, blocksize=SCALE_BLOCK)
        return bnb.dequantize_blockwise(codes, state) + offset

    def rows(self, stored: Tensor, first: int, shared: Any) -> Tensor:
        """Rows `first`, … of the matrix, as the run's layers had them; float32."""
        return self._turned(self._rows(self._turned(stored), first, shared))

    def _turned(self, matrix: Tensor) -> Tensor:
        return matrix.T.contiguous() if self.transposed else matrix

    def _rows(self, stored: Tensor, first: int, shared: Any) -> Tensor:
        require_bitsandbytes()
        import bitsandbytes.functional as bnb

        if self.kind == "int8":
            codes, scales, _ = bnb.int8_vectorwise_quant(stored.to(torch.float16))
            return codes.float() * (scales.float() / 127.0).unsqueeze(1)
        codes, state = self._quantized(stored)
        columns = stored.shape[1]
        start = first_block_of_row(first, columns, BLOCK) if self.on_cpu else first * columns // BLOCK
        state.absmax = shared[start : start + state.absmax.numel()]
        if not self.on_cpu:
            state.shape = (1, stored.numel())  # one row, whose scales no processor misreads
            return bnb.dequantize_4bit(codes, state).reshape(stored.shape).to(torch.float32)
        return bnb.dequantize_4bit(codes, state).to(torch.float32)

    def _quantized(self, stored: Tensor) -> tuple[Tensor, Any]:
        import bitsandbytes.functional as bnb

        return bnb.quantize_4bit(
            stored.to(self.dtype).contiguous(), blocksize=BLOCK, compress_statistics=False, quant_type="nf4"
        )
