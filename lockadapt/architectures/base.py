"""The shape that every stock class is described in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

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


def unwrap_model(model: nn.Module) -> Any:
    """The stock Transformers object inside wrappers. PEFT injects adapters in place, so it is the same object."""
    if isinstance(getattr(model, "module", None), nn.Module):
        model = model.module  # type: ignore[assignment]
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()  # type: ignore[operator]
    return model


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
