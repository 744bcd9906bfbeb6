"""The door for 4-bit layers: wherever they come from, processors do not change what they compute."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import nn

from lockadapt.errors import VerificationError
from lockadapt.models.bitsandbytes import require_bitsandbytes

_SWITCH = "support_avx512bf16_for_cpu"
"""bitsandbytes' own, on every `Linear4bit`: whether its weight may be repacked."""

_LANES = 16
"""float32 values of an AVX512 register: bitsandbytes' kernel takes matrices whose columns this divides."""


def keep_as_trained(model: nn.Module) -> None:
    """Stops bitsandbytes from repacking a model's 4-bit weights; to be called before the model is evaluated.

    On processors with AVX512-BF16, `Linear4bit.forward` repacks its weight at the first forward in evaluation
    mode on the CPU. That rounds the scales to bfloat16, for good: evaluation sees another model than
    training, frozen tensors move, gradients are wrong; and it crashes where 32 does not divide the rows or
    the block does not divide the columns.

    Args:
        model: any, quantized or not. Nothing of it changes but the layers' switch, and that only if no layer
            is refused.

    Raises:
        VerificationError: a layer has been repacked already.
    """
    layers = {name: module for name, module in model.named_modules() if hasattr(module, _SWITCH)}
    for name, layer in layers.items():
        refuse_packed(layer, name)
    for layer in layers.values():
        setattr(layer, _SWITCH, False)
    misread = [name for name, layer in layers.items() if _is_misread(layer)]
    if misread:
        warnings.warn(
            f"bitsandbytes misreads the scales of {len(misread)} 4-bit layers on this processor "
            f"({misread[0]}, ...): their "
            "block does not divide their columns. What is trained here is right only here; use a GPU "
            "or quantization: none",
            stacklevel=2,
        )


def switches(model: nn.Module) -> tuple[tuple[nn.Module, bool], ...]:
    """The layers that `keep_as_trained` changes, and whether bitsandbytes may repack them now."""
    return tuple(
        (module, bool(getattr(module, _SWITCH))) for module in model.modules() if hasattr(module, _SWITCH)
    )


def restore_switches(before: tuple[tuple[nn.Module, bool], ...]) -> None:
    """Undoes `keep_as_trained`, given what `switches` said before it."""
    for layer, value in before:
        setattr(layer, _SWITCH, value)


def refuse_packed(layer: nn.Module, name: str | None = None) -> None:
    """Refuses a layer that bitsandbytes has repacked: its exact scales are lost, not to be restored.

    Args:
        layer: any module.
        name: its path in the model, for the message.

    Raises:
        VerificationError: it is packed.
    """
    state: Any = getattr(getattr(layer, "weight", None), "quant_state", None)
    if getattr(state, "packing_format_for_cpu", False):
        raise VerificationError(
            "bitsandbytes repacked this 4-bit layer when the model was evaluated on this processor "
            "(AVX512-BF16) and "
            "rounded its scales to bfloat16 for good: it is no longer the layer that was loaded",
            where=name,
            fix="load the model again and hand it over before its first forward, or set "
            f"{_SWITCH} = False on its Linear4bit layers before that",
        )


@functools.cache
def processor_repacks() -> bool:
    """Whether bitsandbytes repacks 4-bit layers on this processor unless it is stopped.

    Returns:
        True if it does.

    Raises:
        SetupError: bitsandbytes is missing.
    """
    require_bitsandbytes()
    import bitsandbytes.functional as bnb

    return bool(getattr(bnb, "has_avx512bf16", bool)())


@functools.cache
def processor_misreads_scales() -> bool:
    """Tries whether bitsandbytes dequantizes wrongly here where a block crosses the end of a row.

    Its AVX512 kernel takes the scale at `row * (columns // block) + column // block` (bitsandbytes 0.50), so
    that rows share wrong scales unless the block divides the columns.

    Returns:
        True if it does.

    Raises:
        SetupError: bitsandbytes is missing.
    """
    require_bitsandbytes()
    import bitsandbytes.functional as bnb

    rows = torch.tensor([[1.0], [1.0], [2.0], [2.0]]).expand(4, 32).contiguous()
    return not torch.equal(
        bnb.dequantize_4bit(*bnb.quantize_4bit(rows, blocksize=64, quant_type="nf4")), rows
    )


def first_block_of_row(row: int, columns: int, block: int) -> int:
    """Index of the scale that the CPU reads first in a row of a matrix, as long as the row starts a block."""
    if _crosses(columns, block) and processor_misreads_scales():
        return row * (columns // block)
    return row * columns // block


def _is_misread(layer: Any) -> bool:
    state = getattr(layer.weight, "quant_state", None)
    return (
        state is not None
        and layer.weight.device.type == "cpu"
        and _crosses(state.shape[-1], state.blocksize)
        and processor_misreads_scales()
    )


def _crosses(columns: int, block: int) -> bool:
    """Whether blocks cross the ends of rows in a matrix that the AVX512 kernel takes."""
    return columns % block != 0 and columns % _LANES == 0
