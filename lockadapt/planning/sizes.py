"""How many parameters and bytes each component of a model has, on any device, the meta device among them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lockadapt.architectures import layout_of
from lockadapt.architectures.base import component_of, unwrap_model
from lockadapt.architectures.blocks import blocks_paths
from lockadapt.tuning.locks import true_size

COMPONENTS = (
    *("embeddings", "blocks", "llm", "head", "tower", "projector"),
    *("image tokenizer", "retrieval", "generation", "lora", "other"),
)
"""In this order; `llm` is what the LLM has beside embeddings and blocks (its last norm)."""


@dataclass(frozen=True)
class Size:
    """One component: its parameters, those that train, and all its bytes (buffers and scales included)."""

    component: str
    parameters: int
    trained: int
    bytes: int


def component_sizes(model: nn.Module) -> list[Size]:
    """Sizes of a model's components, possibly wrapped; shared tensors (a tied head) count once."""
    counted = {name: [0, 0, 0] for name in COMPONENTS}
    seen: set[int] = set()
    for component, tensor in named_tensors(model):
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        entry = counted[component]
        entry[2] += tensor.nbytes
        if isinstance(tensor, nn.Parameter):
            entry[0] += true_size(tensor)
            entry[1] += true_size(tensor) if tensor.requires_grad else 0
    return [Size(name, *numbers) for name, numbers in counted.items() if numbers[2]]


def named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter, buffer and scale of a quantized weight, with its component; shared ones come again."""
    base = unwrap_model(model)
    parts, blocks = layout_of(base), tuple(f"{path}." for path in blocks_paths(base))
    table = base.get_submodule(parts.llm).get_input_embeddings()
    for path, module in base.named_modules():
        prefix = f"{path}." if path else ""
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            full = prefix + name
            if ".lora_" in full:
                component = "lora"
            elif module is table:
                component = "embeddings"
            elif full.startswith(blocks) and component_of(full, parts) == "llm":
                component = "blocks"
            else:
                component = component_of(full, parts)
            yield component, tensor
        for tensor in _scales(module):
            yield "blocks", tensor


def _scales(module: nn.Module) -> list[torch.Tensor]:
    """What bitsandbytes keeps beside a quantized weight: blocks' maxima and their own, or rows' scales."""
    scales: list[Any] = []
    state: Any = getattr(getattr(module, "weight", None), "quant_state", None)
    if state is not None:
        scales += [state.absmax, state.code, state.offset]
        if state.state2 is not None:
            scales += [state.state2.absmax, state.state2.code]
    if type(getattr(module, "state", None)).__name__ == "MatmulLtState":
        eight: Any = module
        scales += [eight.state.SCB, getattr(eight.weight, "SCB", None)]
    return [tensor for tensor in scales if isinstance(tensor, torch.Tensor)]
