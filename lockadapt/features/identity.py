"""What remembered features depend on: the tower, its outputs that are projected, and the preprocessing."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from lockadapt.architectures import layout_of, tower_of
from lockadapt.architectures.base import is_below, unwrap_model
from lockadapt.data.pixels import ProcessorInputs
from lockadapt.features.ragged_shards import FORMAT as RAGGED
from lockadapt.tuning.locks import tensor_digest

FORMAT = 1
"""Version of the cache's files; another format is another fingerprint."""

# What a config says of its origin, or of things that features do not depend on; the weights' dtype is in
# their digests.
_BESIDE_THE_POINT = (
    "transformers_version",
    "_name_or_path",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
)


def feature_identity(model: nn.Module, image_processor: Any, stored: str) -> dict[str, Any]:
    """Gives everything that a remembered feature depends on beside the image itself.

    Args:
        model: a stock LLaVA or FastVLM with its tower, possibly wrapped by PEFT. LLM and projector do not
            count.
        image_processor: measured as well as read: resizing and decoding differ between library versions.
        stored: dtype of the stored features.

    Returns:
        Plain JSON values.
    """
    return with_preprocessing(tower_identity(model), image_processor, stored)


def ragged_identity(
    model: nn.Module, images: ProcessorInputs, stored: str, projected: bool
) -> dict[str, Any]:
    """`feature_identity` where images have sizes of their own, as a processor decides.

    Args:
        model: a Transformers model, possibly wrapped by PEFT.
        images: what preprocesses them: measured as well as read.
        stored: dtype of the stored features.
        projected: whether image tokens are kept, which depend on the projector as well.

    Returns:
        Plain JSON values.
    """
    base = unwrap_model(model)
    layout, processor = layout_of(base), images.stock.processor
    # A projector may lie inside the tower, whose outputs do not depend on it.
    named = {**dict(base.named_parameters()), **dict(base.named_buffers())}
    tensors = {
        name: tensor_digest(tensor)
        for name, tensor in named.items()
        if (projected if _is_any(name, layout.projector) else is_below(name, layout.tower))
    }
    config = {k: v for k, v in base.config.to_dict().items() if k != "text_config"}
    own = {k: v for k, v in processor.to_dict().items() if isinstance(v, (int, float, str, bool))}
    identity = {
        **_tower_kind(base),
        "format": RAGGED,
        "kept": "image tokens" if projected else "tower outputs",
        "projector": list(layout.projector),
        "tensors": _hash(tensors),
        "config": _on_the_point(config),
        "processor": {k: v for k, v in own.items() if k != "chat_template"},
        "image_processor": processor.image_processor.to_dict(),
        "preprocessing": [
            {name: tensor_digest(value) for name, value in images.of_pictures([picture]).items()}
            for picture in _pictures()
        ],
        "stored": stored,
    }
    return json.loads(_text(identity))


def tower_identity(model: nn.Module) -> dict[str, Any]:
    """The model's part of `feature_identity`: the tower's weights, buffers, config and projected outputs."""
    base = unwrap_model(model)
    tower = tower_of(base)
    tensors = {**dict(tower.named_parameters()), **dict(tower.named_buffers())}
    digests = {name: tensor_digest(tensor) for name, tensor in tensors.items()}
    return {"format": FORMAT, **_tower_kind(base), "tower_tensors": _hash(digests)}


def with_preprocessing(tower: dict[str, Any], image_processor: Any, stored: str) -> dict[str, Any]:
    """`feature_identity` from its model's part."""
    identity = {
        **tower,
        "image_processor": image_processor.to_dict(),
        "preprocessing": _preprocessing(image_processor),
        "stored": stored,
    }
    # Through text, so that what is compared is what is written.
    return json.loads(_text(identity))


def fingerprint_of(identity: dict[str, Any]) -> str:
    """SHA-256 (hex) of an identity."""
    return _hash(identity)


def _tower_kind(base: Any) -> dict[str, Any]:
    tower = tower_of(base)
    return {
        "model": type(base).__name__,
        "tower": type(tower).__name__,
        "tower_config": {k: v for k, v in tower.config.to_dict().items() if k not in _BESIDE_THE_POINT},
        "feature_layer": getattr(base.config, "vision_feature_layer", None),
        "feature_strategy": getattr(base.config, "vision_feature_select_strategy", None),
    }


def _is_any(name: str, paths: tuple[str, ...]) -> bool:
    return any(is_below(name, path) for path in paths)


def _preprocessing(image_processor: Any) -> str:
    """SHA-256 of two odd-sized pictures, one through JPEG, once preprocessed: decoder, resizing, scaling."""
    return tensor_digest(image_processor(images=_pictures(), return_tensors="pt")["pixel_values"].float())


def _pictures() -> list[Image.Image]:
    rows, columns = np.indices((61, 97))
    values = np.stack([rows * columns, rows * 7 + columns * 3, (rows - columns) ** 2], axis=-1) % 256
    plain = Image.fromarray(values.astype(np.uint8))
    file = io.BytesIO()
    plain.save(file, "JPEG", quality=90)
    return [plain, Image.open(file).convert("RGB")]


def _on_the_point(config: dict[str, Any]) -> dict[str, Any]:
    """A config, and those within it, without what features do not depend on."""
    return {
        name: _on_the_point(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if name not in _BESIDE_THE_POINT
    }


def _hash(value: Any) -> str:
    return hashlib.sha256(_text(value).encode()).hexdigest()


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
