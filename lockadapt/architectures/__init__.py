"""The stock classes that lockadapt trains, one file each, and how one is found."""

from __future__ import annotations

from typing import Any

from torch import nn

from lockadapt.architectures.base import DUAL_LAYOUT, JANUS_LAYOUT, LLAVA_LAYOUT, ModelLayout, unwrap_model
from lockadapt.errors import AssemblyError


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


def tower_of(model: nn.Module) -> Any:
    """The vision tower."""
    return unwrap_model(model).get_submodule(layout_of(model).tower)


def llm_of(model: nn.Module) -> Any:
    """The LLM without its head."""
    return unwrap_model(model).get_submodule(layout_of(model).llm)
