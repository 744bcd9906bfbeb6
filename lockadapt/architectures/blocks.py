"""The LLM's transformer blocks and their linear layers, found by structure: what is quantized and adapted."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lockadapt.architectures import layout_of, llm_of
from lockadapt.architectures.base import is_below, unwrap_model
from lockadapt.errors import AssemblyError
from lockadapt.models.llms import context_of


def blocks_path(model: nn.Module) -> str:
    """Finds the full path of the list of the LLM's transformer blocks, e.g. `model.language_model.layers`.

    Args:
        model: a Transformers model, possibly wrapped.

    Returns:
        The path.

    Raises:
        AssemblyError: no list of as many blocks as the config says.
    """
    path, llm = layout_of(model).llm, llm_of(model)
    if blocks := layout_of(model).blocks:
        return blocks[0]
    depth = llm.config.num_hidden_layers
    for name, module in llm.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return f"{path}.{name}"
    raise AssemblyError(f"{type(llm).__name__} has no list of {depth} blocks", where=path)


def blocks_paths(model: nn.Module) -> tuple[str, ...]:
    """Finds the full paths of all lists of blocks: an encoder-decoder has two."""
    return layout_of(model).blocks or (blocks_path(model),)


def block_linears(model: nn.Module) -> dict[str, nn.Module]:
    """Finds every linear layer inside the LLM's blocks by full path, quantized and `Conv1D` ones included.

    What a class keeps of its projector in there (cross-attention) is not among them.
    """
    base = unwrap_model(model)
    projector = layout_of(base).projector
    linears = {
        f"{path}.{name}": module
        for path in blocks_paths(base)
        for name, module in _linears(base.get_submodule(path))
    }
    return {
        name: module
        for name, module in linears.items()
        if not any(is_below(name, fresh) for fresh in projector)
    }


def quantizable_linears(model: nn.Module) -> dict[str, nn.Module]:
    """Finds those of `block_linears` that Transformers quantizes: T5's `wo` stays in float32."""
    kept = {
        name
        for module in unwrap_model(model).modules()
        for name in getattr(module, "_keep_in_fp32_modules", None) or ()
    }
    return {name: layer for name, layer in block_linears(model).items() if kept.isdisjoint(name.split("."))}


def attention_linears(model: nn.Module) -> dict[str, nn.Module]:
    """Finds those of `block_linears` that lie in an attention module, as Transformers itself marks them.

    Args:
        model: a Transformers model, possibly wrapped.

    Returns:
        Layers by full path.

    Raises:
        AssemblyError: Transformers does not mark this LLM's attention class.
    """
    base, path = unwrap_model(model), layout_of(model).llm
    llm = llm_of(base)
    marked = getattr(llm, "_can_record_outputs", None) or {}
    recorders = (marked.get(name) for name in ("attentions", "cross_attentions"))
    named = (getattr(recorder, "target_class", recorder) for recorder in recorders)
    kinds = tuple(kind for kind in named if isinstance(kind, type))
    if not kinds:
        raise AssemblyError(
            f"{type(llm).__name__} does not say which of its modules are attention",
            where="lora.targets",
            fix="name the layers, or use all-linear",
        )
    inside = tuple(f"{path}.{name}." for name, module in llm.named_modules() if isinstance(module, kinds))
    return {name: module for name, module in block_linears(base).items() if name.startswith(inside)}


def is_linear(module: nn.Module) -> bool:
    """A dense layer of any kind that LoRA can adapt: its weight is a matrix that it multiplies with.

    Some linear layers have a forward of their own: Falcon's is the same product, but routers of experts give
    choices beside it (Phimoe), to which nothing can be added. A quantized layer's forward is its own as well,
    but it keeps what bitsandbytes knows of its weight beside it, also on the meta device.
    """
    from transformers.pytorch_utils import Conv1D

    if not isinstance(module, nn.Linear):
        return isinstance(module, Conv1D)
    kind: Any = type(module)
    return not {"quant_state", "state"}.isdisjoint(vars(module)) or _is_product(kind)


@functools.cache
def _is_product(kind: Any) -> bool:
    """Whether a class of linear layers computes what `nn.Linear` does, tried on a small layer."""
    if kind.forward is nn.Linear.forward:
        return True
    layer, given = kind.__new__(kind), torch.tensor([[1.0, -2.0, 0.5]])
    nn.Module.__init__(layer)
    layer.weight = nn.Parameter(torch.arange(6.0).reshape(2, 3) - 2.5)
    layer.bias = nn.Parameter(torch.tensor([0.25, -4.0]))
    try:
        output = layer(given)
    except Exception:
        return False
    return isinstance(output, Tensor) and torch.equal(output, given @ layer.weight.T + layer.bias)


def context_length(model: nn.Module) -> int:
    """The LLM's context in tokens."""
    return context_of(llm_of(model).config) or 2048


def _linears(parent: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in parent.named_modules():
        # Inside a LoRA layer, the adapted layer is `base_layer`; the adapter's own matrices are no targets.
        path = name.removesuffix(".base_layer")
        if is_linear(module) and ".lora_" not in f".{name}" and not _read_by_its_owner(parent, path):
            yield path, module


def _read_by_its_owner(parent: nn.Module, path: str) -> bool:
    """Whether the module that holds a layer takes its weight itself while it trains, past any adapter.

    Gemma 3n clamps the coefficients of AltUp so, under `if self.training`.
    """
    owner, _, leaf = path.rpartition(".")
    kind: Any = type(parent.get_submodule(owner))
    code = _source(kind)
    return (
        re.search(rf"if self\.training\b[^\n]*\n[^\n]*\bself\.{re.escape(leaf)}\.weight\b", code) is not None
    )


@functools.cache
def _source(kind: Any) -> str:
    """The code of a module's class; empty where there is none."""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ""
