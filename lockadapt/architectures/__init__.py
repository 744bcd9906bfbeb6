"""The stock classes that lockadapt trains, each described in one file, and how a model's one is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

# First, because Transformers imports bitsandbytes, which speaks to the terminal.
import lockadapt.models.bitsandbytes  # noqa: F401  # isort: skip
from torch import nn
from transformers import PreTrainedConfig

from lockadapt.architectures.aya_vision import AYA_VISION
from lockadapt.architectures.base import Architecture, Generation, Inputs, ModelLayout, unwrap_model
from lockadapt.architectures.blip2 import BLIP2
from lockadapt.architectures.dual_encoder import DUAL_ENCODER
from lockadapt.architectures.fast_vlm import FAST_VLM
from lockadapt.architectures.generic import describe_config, describe_model, describes
from lockadapt.architectures.granite4_vision import GRANITE4_VISION
from lockadapt.architectures.idefics import IDEFICS
from lockadapt.architectures.idefics3 import IDEFICS3
from lockadapt.architectures.janus import JANUS
from lockadapt.architectures.llava import LLAVA
from lockadapt.architectures.llava_next import LLAVA_NEXT
from lockadapt.architectures.vision_encoder_decoder import VISION_ENCODER_DECODER
from lockadapt.errors import AssemblyError
from lockadapt.models.llms import is_encoder_decoder

ARCHITECTURES: tuple[Architecture, ...] = (
    LLAVA,
    FAST_VLM,
    JANUS,
    DUAL_ENCODER,
    AYA_VISION,
    IDEFICS3,
    LLAVA_NEXT,
    VISION_ENCODER_DECODER,
    IDEFICS,
    BLIP2,
    GRANITE4_VISION,
)

_LOCATED: WeakKeyDictionary[nn.Module, Architecture] = WeakKeyDictionary()
"""Of models of classes whose parts lie where their config says: looked for once a model."""


def architecture_of(thing: nn.Module | PreTrainedConfig) -> Architecture:
    """Finds the architecture of a Transformers model, the one inside wrappers, or a config.

    Args:
        thing: the model or the config.

    Returns:
        The architecture.

    Raises:
        AssemblyError: it is of no class that lockadapt trains.
    """
    if isinstance(thing, nn.Module):
        base = unwrap_model(thing)
        architecture = next(
            (listed for listed in ARCHITECTURES if isinstance(base, listed.model_class)), None
        )
        if architecture is None and describes(getattr(base, "config", None)):
            architecture = describe_model(base)
        elif architecture is not None and architecture.locate is not None:
            architecture = _located(base, architecture, architecture.locate)
    else:
        base, architecture = thing, find_architecture(thing)
    if architecture is None:
        raise AssemblyError(
            f"{class_name(base)} is not one of the classes that lockadapt trains",
            fix="start from a checkpoint that answers questions about images, or from an LLM and a tower",
        )
    return architecture


def find_architecture(config: Any) -> Architecture | None:
    """The architecture of a config; None: it is of no class that lockadapt trains.

    Its layout names the tower; where `Architecture.locate` is given, only a model tells the other parts.

    Args:
        config: of a stock class, or any other.

    Returns:
        The architecture, or None.

    Raises:
        AssemblyError: it is of a class whose parts cannot be told.
    """
    known = next(
        (architecture for architecture in ARCHITECTURES if type(config) is architecture.config_class), None
    )
    return describe_config(config) if known is None and describes(config) else known


def _located(model: Any, architecture: Architecture, locate: Callable[[Any], ModelLayout]) -> Architecture:
    if model not in _LOCATED:
        _LOCATED[model] = replace(architecture, layout=locate(model))
    return _LOCATED[model]


def class_name(thing: Any) -> str:
    """Of a Transformers model, or of the one that a config is for."""
    if isinstance(thing, nn.Module):
        return type(thing).__name__
    return str((getattr(thing, "architectures", None) or [getattr(thing, "model_type", None) or thing])[0])


def inputs_of(processor: Any) -> Inputs:
    """What images and text become, by the processor: its class decides, not the model's.

    Of a processor that is not known, or that makes other texts of other pictures, the answer is asked for
    every row, if it has an image token.
    """
    for architecture in ARCHITECTURES:
        inputs = architecture.inputs
        if type(processor) is inputs.processor_class and inputs.uniform(processor):
            return inputs
    marked = bool(getattr(processor, "image_token", None))
    return Inputs(type(processor), None, stock=marked)


def generation_of(model: nn.Module) -> Generation:
    """How this Transformers model, or the one inside wrappers, generates images.

    Args:
        model: a Transformers model, possibly wrapped.

    Returns:
        Its class's `Generation`.

    Raises:
        AssemblyError: it does not generate images, or is of no class that lockadapt trains.
    """
    generation = architecture_of(model).generation
    if generation is None:
        raise AssemblyError(
            f"{type(unwrap_model(model)).__name__} does not generate images",
            fix="give model.image_tokenizer, or start from a Janus checkpoint",
        )
    return generation


def layout_of(model: nn.Module) -> ModelLayout:
    """Finds where this Transformers model, or the one inside wrappers, keeps its parts.

    Args:
        model: a Transformers model, possibly wrapped.

    Returns:
        Paths of its parts.

    Raises:
        AssemblyError: it is of no class that lockadapt trains.
    """
    return architecture_of(model).layout


def tower_of(model: nn.Module) -> Any:
    """The vision tower."""
    return unwrap_model(model).get_submodule(layout_of(model).tower)


def llm_of(model: nn.Module) -> Any:
    """The LLM without its head."""
    return unwrap_model(model).get_submodule(layout_of(model).llm)


def answers_apart(model: nn.Module) -> bool:
    """Whether an encoder reads prompts and a decoder writes answers (T5), so that no row has both."""
    architecture = architecture_of(model)
    return architecture.answers and is_encoder_decoder(llm_of(model).config)
