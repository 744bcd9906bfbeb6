"""Turns the blocks of a model on the meta device into bitsandbytes' quantized ones, without a weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lockadapt.architectures.blocks import quantizable_linears
from lockadapt.models.bitsandbytes import require_bitsandbytes
from lockadapt.tuning.quantize import Quantization


def quantize_meta(model: Any, quantization: Quantization, dtype: torch.dtype) -> None:
    """Replaces the blocks' linear layers by bitsandbytes' own, on the meta device as well. In place.

    Args:
        model: a Transformers model on the meta device.
        quantization: `nf4` or `int8`; with `none` nothing changes.
        dtype: of the arithmetic.

    Raises:
        SetupError: bitsandbytes is missing.
    """
    require_bitsandbytes()
    for name, layer in quantizable_linears(model).items():
        parent, _, leaf = name.rpartition(".")
        make = _four_bit if quantization == "nf4" else _eight_bit
        setattr(model.get_submodule(parent), leaf, make(_linear(layer), dtype))
    setattr(model, "is_loaded_in_4bit" if quantization == "nf4" else "is_loaded_in_8bit", True)


def _linear(layer: Any) -> nn.Linear:
    """The layer, or the one that Transformers makes of GPT-2's Conv1D, whose matrix is (in, out)."""
    if isinstance(layer, nn.Linear):
        return layer
    rows, columns = layer.weight.shape
    made = nn.Linear(rows, columns, bias=False, device="meta", dtype=layer.weight.dtype)
    made.bias = layer.bias
    return made


def _four_bit(layer: nn.Linear, dtype: torch.dtype) -> nn.Module:
    """NF4 with double quantisation: half a byte a weight, a byte a block of 64, four bytes for 256 blocks."""
    from bitsandbytes.functional import QuantState
    from bitsandbytes.nn import Linear4bit

    count = layer.weight.numel()
    blocks = -(-count // 64)
    nested = QuantState(
        absmax=torch.empty(-(-blocks // 256)), blocksize=256, code=torch.empty(256), dtype=torch.float32
    )
    state = QuantState(
        absmax=torch.empty(blocks, dtype=torch.uint8),
        shape=layer.weight.shape,
        dtype=dtype,
        blocksize=64,
        code=torch.empty(16),
        quant_type="nf4",
        offset=torch.empty(()),
        state2=nested,
    )
    new = _bare(Linear4bit, layer)
    weight: Any = nn.Parameter(torch.empty(-(-count // 2), 1, dtype=torch.uint8), requires_grad=False)
    weight.quant_state, weight.compress_statistics, weight.quant_type = state, True, "nf4"
    new.weight, new.quant_state, new.compute_dtype, new.compute_type_is_set = weight, state, dtype, True
    new.support_avx512bf16_for_cpu = False
    return new


def _eight_bit(layer: nn.Linear, dtype: torch.dtype) -> nn.Module:
    """LLM.int8(): a byte a weight, and four bytes a row."""
    import bitsandbytes as bnb

    new = _bare(bnb.nn.Linear8bitLt, layer)
    state = bnb.MatmulLtState()
    state.threshold, state.has_fp16_weights, state.use_pool = 6.0, False, True
    state.CB = torch.empty(layer.weight.shape, dtype=torch.int8)
    state.SCB = torch.empty(layer.weight.shape[0])
    weight: Any = nn.Parameter(state.CB, requires_grad=False)
    weight.CB = weight.SCB = None
    new.weight, new.state, new.index = weight, state, None
    return new


def _bare(kind: Any, layer: nn.Linear) -> Any:
    """A layer of bitsandbytes' class around another's bias; its constructor would allocate a weight first."""
    new = kind.__new__(kind)
    nn.Module.__init__(new)
    new.in_features, new.out_features, new.bias = layer.in_features, layer.out_features, layer.bias
    return new
