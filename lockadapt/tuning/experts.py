"""The stacked experts of a mixture: where they lie, how LoRA is named onto them, and what leaves them out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn

from lockadapt.architectures.base import unwrap_model
from lockadapt.architectures.blocks import block_linears, blocks_path
from lockadapt.errors import AdapterError
from lockadapt.models.sources import some

EXPERTS = "experts"
"""The target that means all of them."""


def stacked_experts(model: nn.Module) -> dict[str, nn.Parameter]:
    """Finds the tensors of the LLM's blocks that hold the matrices of several experts.

    Transformers keeps the experts of a block in one tensor (experts, out, in) or (experts, in, out), which
    is no linear layer.

    Args:
        model: a Transformers model, possibly wrapped by PEFT.

    Returns:
        Tensors by the full path that they have in the model without an adapter.
    """
    base = unwrap_model(model)
    path = blocks_path(base)
    stacks = {}
    for name, module in base.get_submodule(path).named_modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) or ".lora_" in f".{name}":
            continue
        for leaf, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3:
                stacks[".".join([path, *_plain(name), leaf])] = parameter
    return stacks


def named_experts(stacks: Sequence[str], target: str) -> list[str]:
    """Chooses the stacks that a target names: `experts`, a full path, or a tail of two components or more.

    A last component alone names linear layers: dense ones and shared experts are often called the same.

    Args:
        stacks: full paths.
        target: of `lora.targets`.

    Returns:
        Full paths, in the order of `stacks`.
    """
    if target == EXPERTS:
        return list(stacks)
    return [path for path in stacks if path == target or ("." in target and path.endswith("." + target))]


def require_adaptable(stacks: dict[str, nn.Parameter], dropout: float, dora: bool) -> None:
    """Refuses what PEFT cannot do on a tensor of stacked experts.

    Args:
        stacks: those that LoRA is to be put on; with none nothing is refused.
        dropout: of LoRA.
        dora: whether magnitudes are trained as well.

    Raises:
        AdapterError: dropout or DoRA, or experts in a quantized dtype.
    """
    if not stacks:
        return
    for key, asked in (("lora.dropout", dropout > 0), ("lora.dora", dora)):
        if asked:
            raise AdapterError(
                f"PEFT has no {key.removeprefix('lora.')} for stacked experts, which are no layers",
                where=key,
                fix="leave it out, or take the experts out of lora.targets",
            )
    quantized = [path for path, stack in stacks.items() if not stack.is_floating_point()]
    if quantized:
        raise AdapterError(
            f"{some(quantized)} are stored as {stacks[quantized[0]].dtype}: PEFT adapts experts in floating "
            "point only",
            where="lora.targets",
            fix="start from the checkpoint that they were quantized from, or take the experts out",
        )


def experts_note(model: nn.Module) -> str | None:
    """Says what LoRA and quantization leave out of an LLM with experts.

    Args:
        model: with or without LoRA.

    Returns:
        One sentence for the user; None: it has no stacked experts.
    """
    stacks, linears = stacked_experts(model), block_linears(model)
    if not stacks:
        return None
    base = unwrap_model(model)
    stacked = sum(stack.numel() for stack in stacks.values())
    # A 4-bit layer's tensor holds fewer numbers than the layer has weights.
    layers: list[Any] = [base.get_submodule(path) for path in linears]
    dense = sum(layer.in_features * layer.out_features for layer in layers)
    share = dense / (dense + stacked)
    adapted = kept_by_peft(base, list(linears))
    names = ", ".join(sorted({path.rsplit(".", 1)[-1] for path in adapted}))
    trained = sum(hasattr(module, "parameter_name") for module in base.modules())
    experts = (
        f"LoRA is on {trained} of {len(stacks)} such tensors"
        if trained
        else f"LoRA is not on them (lora.targets: [all-linear, {EXPERTS}] puts it there), only on {names}"
    )
    return (
        f"mixture of experts: {1 - share:.0%} of the weights in the LLM's blocks are stacked experts, which "
        f"are no linear layers. {experts}; nf4 and int8 quantize {share:.0%} of these weights"
    )


def kept_by_peft(model: nn.Module, targets: list[str]) -> list[str]:
    """Targets without those that PEFT replaces by the fused experts of a mixture, by their last names.

    It does so for adapters of before experts were fused, and takes dense layers and shared experts for them.
    """
    config = LoraConfig(target_modules=targets)
    convert_peft_config_for_transformers(config, unwrap_model(model), None)
    return [target for target in targets if target in (config.target_modules or ())]


def expert_path(name: str, wrapper: Any) -> str:
    """The stock path of the tensor that one of PEFT's wrappers adapts; `name` is the wrapper's own path."""
    return ".".join([*_plain(name), wrapper.parameter_name])


def _plain(name: str) -> list[str]:
    """A path's components without those of PEFT's wrappers, which stand one inside the other."""
    return [part for part in name.split(".") if part and part != "base_layer"]
