"""Finds the parts of a stock VLM by structure: tower, projector, LLM, its blocks, its head; through DDP and PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from lockadapt.errors import AssemblyError

TOWER, PROJECTOR, LLM, HEAD = (
    "model.vision_tower",
    "model.multi_modal_projector",
    "model.language_model",
    "lm_head",
)
"""Where LLaVA and FastVLM keep their parts."""


def stock(model: nn.Module) -> Any:
    """The stock Transformers object inside wrappers. PEFT injects adapters in place, so it is the same object."""
    if isinstance(getattr(model, "module", None), nn.Module):
        model = model.module  # type: ignore[assignment]
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()  # type: ignore[operator]
    return model


def component_of(name: str) -> str:
    """Which component a parameter, buffer or module of a stock model belongs to."""
    for component, prefix in (("tower", TOWER), ("projector", PROJECTOR), ("llm", LLM), ("head", HEAD)):
        if name == prefix or name.startswith(prefix + "."):
            return component
    return "other"


def blocks_path(model: nn.Module) -> str:
    """Full path of the list of the LLM's transformer blocks, e.g. `model.language_model.layers`.

    Raises:
        AssemblyError: no list of as many blocks as the config says.
    """
    llm = stock(model).get_submodule(LLM)
    depth = llm.config.num_hidden_layers
    for name, module in llm.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return f"{LLM}.{name}"
    raise AssemblyError(f"{type(llm).__name__} has no list of {depth} blocks", where=LLM)


def block_linears(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer inside the LLM's blocks by full path, quantized ones and GPT-2's `Conv1D` among them."""
    base = stock(model)
    path = blocks_path(base)
    return {f"{path}.{name}": module for name, module in _linears(base.get_submodule(path))}


def attention_linears(model: nn.Module) -> dict[str, nn.Module]:
    """Those of `block_linears` that lie in an attention module, as Transformers itself marks them.

    Raises:
        AssemblyError: Transformers does not mark this LLM's attention class.
    """
    base = stock(model)
    llm = base.get_submodule(LLM)
    marked = getattr(llm, "_can_record_outputs", None) or {}
    recorder = marked.get("attentions")
    kind = getattr(recorder, "target_class", recorder)
    if not isinstance(kind, type):
        raise AssemblyError(
            f"{type(llm).__name__} does not say which of its modules are attention",
            where="lora.targets",
            fix="name the layers, or use all-linear",
        )
    inside = tuple(f"{LLM}.{name}." for name, module in llm.named_modules() if isinstance(module, kind))
    return {name: module for name, module in block_linears(base).items() if name.startswith(inside)}


def is_linear(module: nn.Module) -> bool:
    """A dense layer of any kind that LoRA can adapt: its weight is a matrix and it is no embedding."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))


def _linears(parent: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in parent.named_modules():
        # Inside a LoRA layer, the adapted layer is `base_layer`; the adapter's own matrices are no targets.
        if is_linear(module) and ".lora_" not in f".{name}":
            yield name.removesuffix(".base_layer"), module
