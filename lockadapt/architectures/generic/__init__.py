"""Any stock VLM without a file of its own, described by what its config, structure and processor say."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from lockadapt.architectures.base import Architecture, Clients, Inputs, Positions
from lockadapt.architectures.generic.features import stock_features
from lockadapt.architectures.generic.layout import find_layout
from lockadapt.architectures.generic.positions import tree_positions

NOT_BUILT = "is not built for classes without a description of their own"
REFUSED = dict.fromkeys(("bridge", "colpali", "sentence-transformers"), f"this export {NOT_BUILT}")

_FOUND: WeakKeyDictionary[nn.Module, Architecture] = WeakKeyDictionary()
"""Looked for once a model: its parts do not move, and every loss asks where they are."""


def describes(config: Any) -> bool:
    """Whether Transformers maps a config to a class that answers questions about images, with a tower."""
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and hasattr(config, "vision_config")


def answers_images(model_type: str) -> bool:
    """Whether Transformers maps this type to a class that answers questions about images."""
    return model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def describe_model(model: PreTrainedModel) -> Architecture:
    """The description of a stock VLM.

    Args:
        model: on any device; adapters may be attached.

    Returns:
        What its structure and its config tell; the same object for the same model.

    Raises:
        AssemblyError: its parts cannot be told.
    """
    if model not in _FOUND:
        layout = find_layout(model)
        _FOUND[model] = Architecture(
            model_class=type(model),
            config_class=type(model.config),
            layout=layout,
            features=stock_features(layout),
            inputs=Inputs(object, None, stock=True),
            positions=Positions(follow=tree_positions),
            clients=Clients(refused=REFUSED),
            settings=(),
        )
    return _FOUND[model]


def describe_config(config: Any) -> Architecture:
    """The description of the stock class that a config is for, which is built without weights.

    Args:
        config: of a class that answers questions about images.

    Returns:
        As `describe_model`.

    Raises:
        AssemblyError: its parts cannot be told.
    """
    model_class: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    with torch.device("meta"):
        return describe_model(model_class._from_config(config))
