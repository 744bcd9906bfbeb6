"""The door for kept features, for any model: what of a tower may be kept, and how it comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lockadapt.architectures import architecture_of
from lockadapt.architectures.base import Features, unwrap_model
from lockadapt.architectures.generic.features import stock_features
from lockadapt.architectures.kept import ImageRecord, RaggedFeatures
from lockadapt.errors import AssemblyError, DataError


def projector_input(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """What may be kept of images: all that the frozen part of a model computes of them, without gradient.

    Args:
        model: a Transformers model, possibly wrapped.
        pixel_values: (images, channels, side, side), in the tower's dtype, on its device.

    Returns:
        Of most classes exactly what the projector is fed, (images, tokens, channels); see `Features.take`.

    Raises:
        AssemblyError: nothing of this class may be kept, or its images have different numbers of tokens.
    """
    features = architecture_of(model).features
    kept = None if features and features.ragged else kept_outputs(model, {"pixel_values": pixel_values})
    if not isinstance(kept, Tensor):
        raise AssemblyError(
            f"images of {type(unwrap_model(model)).__name__} have different numbers of tokens"
        )
    return kept


def kept_outputs(
    model: nn.Module, images: Mapping[str, Any], projected: bool = False, ragged: bool = False
) -> Tensor | Sequence[ImageRecord]:
    """What may be kept of the image part of a batch: see `Features.take`.

    Args:
        model: a Transformers model, possibly wrapped.
        images: tensors by the name of forward's argument, on the model's device.
        projected: whether the projector does not train either, so that its outputs may be kept.
        ragged: whether a processor makes the images' sizes their own, whatever the class's bridges do.

    Returns:
        (images, tokens, channels), or a record an image.

    Raises:
        AssemblyError: nothing of this class may be kept.
    """
    base = unwrap_model(model)
    features = _features(base, ragged)
    if not ragged:
        images = {**images, **architecture_of(base).inputs.shown(images["pixel_values"])}
    if projected and features.take_projected is not None:
        return features.take_projected(base, images)
    return features.take(base, images)


def image_arguments(
    model: nn.Module, image_features: Tensor | RaggedFeatures, image_scales: Tensor | None = None
) -> dict[str, Any]:
    """The arguments of forward and of `generate` that stand for pixels.

    Args:
        model: a Transformers model, possibly wrapped.
        image_features: from `kept_outputs`, in the order of the images in the text; in any dtype, on any
            device.
        image_scales: what int8 features are multiplied with, float32 (images, 1, channels).

    Returns:
        With gradient to what trains. `pixel_values` must not be passed beside them.

    Raises:
        AssemblyError: features do not enter this class's forward.
    """
    base = unwrap_model(model)
    give = _features(base, isinstance(image_features, RaggedFeatures)).give
    if give is None:
        raise AssemblyError(f"{type(base).__name__} takes no kept features")
    return give(base, image_features, image_scales)


def beside_text(model: nn.Module, arguments: dict[str, Any], image_rows: Tensor | None) -> dict[str, Any]:
    """Arguments of forward and of `generate` as the class takes them.

    Args:
        model: a Transformers model, possibly wrapped.
        arguments: as most classes take them, images in the order of the rows that show them.
        image_rows: the row of each image, int64 (images,); None without images.

    Returns:
        The same, of classes whose images stand in the text; else what `Beside.arguments` makes of them.

    Raises:
        DataError: the class cannot show so many images in a row, or so few.
    """
    base = unwrap_model(model)
    beside = architecture_of(base).beside
    if beside is None:
        return arguments
    rows = image_rows if image_rows is not None else torch.zeros(0, dtype=torch.long)
    count = int(arguments["input_ids"].shape[0])
    shown = torch.bincount(rows, minlength=count)
    if not beside.several and bool((shown > 1).any()):
        raise DataError(
            f"{type(base).__name__} is shown one image a row, and a row has {int(shown.max())}",
            fix="use rows of one image, or another fusion",
        )
    if not beside.text_alone and bool((shown < 1).any()):
        raise DataError(
            f"{type(base).__name__} answers about an image only, and a row has none",
            fix="remove rows without an image, or use another fusion",
        )
    return beside.arguments(base, arguments, rows)


def reads_text_alone(model: nn.Module) -> bool:
    """Whether the class takes texts without an image."""
    beside = architecture_of(model).beside
    return beside is None or beside.text_alone


def _features(base: Any, ragged: bool) -> Features:
    architecture = architecture_of(base)
    features = architecture.features
    if ragged and (features is None or not features.ragged):
        return stock_features(architecture.layout)
    if features is None:
        raise AssemblyError(f"nothing of {type(base).__name__} may be kept")
    return features
