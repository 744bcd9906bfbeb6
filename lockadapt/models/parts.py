"""Finds the parts of a stock model by its class and structure: tower, projector, LLM, its blocks, its head, what can train."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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

RETRIEVAL = "retrieval"
"""Name of the module that a contrastive run adds to a stock model; no stock folder holds it."""


@dataclass(frozen=True)
class ModelLayout:
    """Paths of the parts of a stock class.

    Attributes:
        tower, llm: what is frozen.
        projector: between them, or None.
        head: the LLM's, or None where the class has none.
        retrieval: what embeds images and texts.
        generation: what draws images.
        image_tokenizer: what turns images into codes and back; frozen.
    """

    tower: str
    llm: str
    projector: str | None
    head: str | None
    retrieval: tuple[str, ...] = (RETRIEVAL,)
    generation: tuple[str, ...] = ()
    image_tokenizer: tuple[str, ...] = ()


LLAVA_LAYOUT = ModelLayout(TOWER, LLM, PROJECTOR, HEAD)
JANUS_LAYOUT = ModelLayout(
    "model.vision_model",
    LLM,
    "model.aligner",
    HEAD,
    generation=("model.generation_aligner", "model.generation_head"),
    image_tokenizer=("model.vqmodel", "model.generation_embeddings"),
)
DUAL_LAYOUT = ModelLayout(
    "vision_model", "text_model", None, None, retrieval=("visual_projection", "text_projection", RETRIEVAL)
)


def layout_of(model: nn.Module) -> ModelLayout:
    """Where this stock model, or the one inside wrappers, keeps its parts.

    Raises:
        AssemblyError: it is of no class that lockadapt trains.
    """
    from transformers import (
        FastVlmForConditionalGeneration,
        JanusForConditionalGeneration,
        LlavaForConditionalGeneration,
        VisionTextDualEncoderModel,
    )

    base = unwrap_model(model)
    if isinstance(base, (LlavaForConditionalGeneration, FastVlmForConditionalGeneration)):
        return LLAVA_LAYOUT
    if isinstance(base, JanusForConditionalGeneration):
        return JANUS_LAYOUT
    if isinstance(base, VisionTextDualEncoderModel):
        return DUAL_LAYOUT
    raise AssemblyError(
        f"{type(base).__name__} is not one of the classes that lockadapt trains",
        fix="start from a LLaVA, FastVLM or Janus checkpoint, or from an LLM and a tower",
    )


def unwrap_model(model: nn.Module) -> Any:
    """The stock Transformers object inside wrappers. PEFT injects adapters in place, so it is the same object."""
    if isinstance(getattr(model, "module", None), nn.Module):
        model = model.module  # type: ignore[assignment]
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()  # type: ignore[operator]
    return model


def tower_of(model: nn.Module) -> Any:
    """The vision tower."""
    return unwrap_model(model).get_submodule(layout_of(model).tower)


def llm_of(model: nn.Module) -> Any:
    """The LLM without its head."""
    return unwrap_model(model).get_submodule(layout_of(model).llm)


def component_of(name: str, parts: ModelLayout = LLAVA_LAYOUT) -> str:
    """Which component a parameter, buffer or module of a stock model belongs to."""
    if ".lora_" in name:
        return "lora"
    if ".trainable_tokens_" in name:
        return "retrieval"
    places = {
        "tower": (parts.tower,),
        "projector": (parts.projector,),
        "llm": (parts.llm,),
        "head": (parts.head,),
        "retrieval": parts.retrieval,
        "generation": parts.generation,
        "image tokenizer": parts.image_tokenizer,
    }
    for component, prefixes in places.items():
        if any(prefix and (name == prefix or name.startswith(prefix + ".")) for prefix in prefixes):
            return component
    return "other"


def blocks_path(model: nn.Module) -> str:
    """Full path of the list of the LLM's transformer blocks, e.g. `model.language_model.layers`.

    Raises:
        AssemblyError: no list of as many blocks as the config says.
    """
    path, llm = layout_of(model).llm, llm_of(model)
    depth = llm.config.num_hidden_layers
    for name, module in llm.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return f"{path}.{name}"
    raise AssemblyError(f"{type(llm).__name__} has no list of {depth} blocks", where=path)


def block_linears(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer inside the LLM's blocks by full path, quantized ones and GPT-2's `Conv1D` among them."""
    base = unwrap_model(model)
    path = blocks_path(base)
    return {f"{path}.{name}": module for name, module in _linears(base.get_submodule(path))}


def attention_linears(model: nn.Module) -> dict[str, nn.Module]:
    """Those of `block_linears` that lie in an attention module, as Transformers itself marks them.

    Raises:
        AssemblyError: Transformers does not mark this LLM's attention class.
    """
    base, path = unwrap_model(model), layout_of(model).llm
    llm = llm_of(base)
    marked = getattr(llm, "_can_record_outputs", None) or {}
    recorder = marked.get("attentions")
    kind = getattr(recorder, "target_class", recorder)
    if not isinstance(kind, type):
        raise AssemblyError(
            f"{type(llm).__name__} does not say which of its modules are attention",
            where="lora.targets",
            fix="name the layers, or use all-linear",
        )
    inside = tuple(f"{path}.{name}." for name, module in llm.named_modules() if isinstance(module, kind))
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
