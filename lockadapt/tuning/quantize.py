"""Loads a stock folder with the LLM's blocks in 4 or 8 bits and nothing else, and undoes it for merging."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lockadapt.architectures.absent_tower import TowerRecord
from lockadapt.architectures.base import unwrap_model
from lockadapt.architectures.blocks import quantizable_linears
from lockadapt.architectures.load import load_model
from lockadapt.errors import VerificationError
from lockadapt.models.bitsandbytes import require_bitsandbytes
from lockadapt.models.four_bit import refuse_packed

Quantization = Literal["none", "nf4", "int8"]


def load_quantized(
    folder: str | Path,
    quantization: Quantization,
    dtype: torch.dtype,
    without_tower: TowerRecord | None = None,
) -> tuple[Any, Any]:
    """Loads a stock folder, quantized as asked, and checks every linear layer's type.

    Args:
        folder: a LLaVA or FastVLM folder or Hub id.
        quantization: `nf4` (double quantisation, QLoRA, arXiv 2305.14314), `int8` (LLM.int8(), arXiv
            2208.07339), `none`.
        dtype: of everything that is not quantized, and of the arithmetic.
        without_tower: as `load_model` takes it.

    Returns:
        Model and processor.

    Raises:
        SetupError: bitsandbytes is missing, or cannot do this here.
        VerificationError: something else than the blocks was quantized, or a block was not.
    """
    if quantization == "none":
        return load_model(folder, dtype, without_tower=without_tower)
    require_bitsandbytes()
    # It says so at every product of every layer; docs/recipes.md says it once.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    from transformers import BitsAndBytesConfig
    from transformers.pytorch_utils import Conv1D

    plain, _ = load_model(folder, torch.bfloat16, meta=True)
    inside = set(quantizable_linears(plain))
    # Transformers 5 anchors these as regular expressions at the start of the full path: bare names skip
    # nothing. GPT-2's Conv1D are quantized too, those of its cross-attention among them.
    kinds = nn.Linear, Conv1D
    outside = [
        name for name, module in plain.named_modules() if isinstance(module, kinds) and name not in inside
    ]
    config = BitsAndBytesConfig(
        load_in_4bit=quantization == "nf4",
        load_in_8bit=quantization == "int8",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=sorted(outside),
    )
    model, processor = load_model(folder, dtype, quantization_config=config, without_tower=without_tower)
    check_types(model, quantization)
    return model, processor


def check_types(model: nn.Module, quantization: Quantization) -> None:
    """Checks that every linear layer in the blocks is quantized, and no other module is.

    Args:
        model: a Transformers model.
        quantization: what was asked for.

    Raises:
        VerificationError: names the first modules that break this.
    """
    inside = set(quantizable_linears(model))
    wrong = []
    for name, module in unwrap_model(model).named_modules():
        quantized = is_quantized(module)
        if quantized != (name in inside):
            wrong.append(f"{name} is {type(module).__name__}")
    if wrong:
        raise VerificationError(
            f"{quantization} landed in the wrong place: {'; '.join(wrong[:5])}",
            where="model.quantization",
            fix="use quantization: none for this LLM, and report it",
        )


def is_quantized(module: nn.Module) -> bool:
    """Whether a module holds a bitsandbytes weight."""
    return type(getattr(module, "weight", None)).__name__ in ("Params4bit", "Int8Params")


def dequantized_weight(module: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """Gives the matrix that a quantized layer multiplies with.

    Args:
        module: a linear layer of bitsandbytes.
        dtype: of the result.

    Returns:
        (out, in), on the layer's device.

    Raises:
        SetupError: bitsandbytes is missing.
        VerificationError: bitsandbytes has repacked the layer.
    """
    require_bitsandbytes()
    refuse_packed(module)
    import bitsandbytes.functional as bnb

    weight: Any = module.weight
    if type(weight).__name__ == "Params4bit":
        return bnb.dequantize_4bit(weight.data, weight.quant_state).to(dtype)
    state: Any = getattr(module, "state", None)
    scale = weight.SCB if weight.SCB is not None else state.SCB  # type: ignore[union-attr]
    return (weight.data.to(torch.float32) * (scale.to(torch.float32) / 127.0).unsqueeze(1)).to(dtype)


@torch.no_grad()
def dequantize(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Replaces every quantized layer by a plain Linear with the dequantized weight, in place.

    To be called before LoRA is attached: PEFT chooses its layer, and how that merges, by what it finds then.
    """
    base = unwrap_model(model)
    for name, module in list(base.named_modules()):
        if not is_quantized(module):
            continue
        bias = module.bias
        plain = nn.Linear(module.in_features, module.out_features, bias=bias is not None, dtype=dtype)  # type: ignore[arg-type]
        plain.weight.data = dequantized_weight(module, dtype)
        if bias is not None:
            plain.bias.data = bias.data.to(dtype)  # type: ignore[union-attr]
        parent, _, leaf = name.rpartition(".")
        setattr(base.get_submodule(parent), leaf, plain.requires_grad_(False))
    for attribute in (
        "hf_quantizer",
        "is_quantized",
        "is_loaded_in_4bit",
        "is_loaded_in_8bit",
        "quantization_method",
    ):
        if attribute in vars(base):
            delattr(base, attribute)
    if hasattr(base.config, "quantization_config"):
        del base.config.quantization_config
    return model.to(dtype)
