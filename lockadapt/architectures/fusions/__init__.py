"""Fusions: which projector stands between a tower and an LLM, in which stock class, and its door for features."""

from __future__ import annotations

from transformers import PreTrainedModel

from lockadapt.architectures.fusions.aligner import JANUS_LINEAR, JANUS_MLP
from lockadapt.architectures.fusions.bodies import (
    BODIES,
    JANUS,
    Body,
    body_of,
    processor_arguments,
    stock_config,
)
from lockadapt.architectures.fusions.features import image_outputs, projector_input
from lockadapt.architectures.fusions.linear import LINEAR
from lockadapt.architectures.fusions.mlp import MLP
from lockadapt.architectures.fusions.projectors import Projector
from lockadapt.errors import RecipeError

__all__ = [
    "BODIES",
    "FUSIONS",
    "JANUS",
    "JANUS_FUSIONS",
    "Body",
    "Projector",
    "body_of",
    "fusion_of",
    "get_fusion",
    "image_outputs",
    "processor_arguments",
    "projector_input",
    "stock_config",
]

FUSIONS = {projector.name: projector for projector in (MLP, LINEAR)}
JANUS_FUSIONS = {projector.name: projector for projector in (JANUS_MLP, JANUS_LINEAR)}
"""The same for the class that draws."""


def get_fusion(name: str, *, draws: bool = False) -> Projector:
    """The fusion of that name; `draws` for the class that also draws images, Janus.

    Raises:
        RecipeError: there is none.
    """
    if name not in FUSIONS:
        raise RecipeError(f"no fusion {name!r}", where="model.fusion", fix=f"use one of {', '.join(FUSIONS)}")
    return (JANUS_FUSIONS if draws else FUSIONS)[name]


def fusion_of(model: PreTrainedModel) -> Projector:
    """The fusion of a stock model: linear where its projector has no activation, else mlp."""
    if isinstance(model, JANUS.model_class):
        return JANUS_LINEAR if model.config.vision_config.depth == 1 else JANUS_MLP
    return LINEAR if model.config.projector_hidden_act == LINEAR.activation else MLP
