"""What may be kept of the images of any stock VLM, and how it comes back, found by structure.

Where nothing before the LLM trains, the image tokens themselves are kept. Where the connector trains, the
tower's outputs are; where it lies inside the tower, those of the tower's blocks. Either way every image is
computed alone, and comes back through `mm_encoder_outputs`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from lockadapt.architectures.base import Features, ModelLayout, is_below
from lockadapt.architectures.generic.cut import Cut, find_cut
from lockadapt.architectures.generic.image_keys import images_of, key_facts, numbers_of, shape_of, tensor_of
from lockadapt.architectures.kept import ImageRecord, RaggedFeatures
from lockadapt.errors import AssemblyError

TOKENS = "pooler_output"
"""Field of a class's image features that holds the image tokens."""

RAW = {field.name for field in dataclasses.fields(BaseModelOutputWithPooling)} - {TOKENS}
"""Fields that hold the tower's own outputs, which no class reads behind its image features."""

_SHAPE, _VALUE = "shape of ", "value of "

_CUTS: WeakKeyDictionary[nn.Module, Cut] = WeakKeyDictionary()
_OUTPUTS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
"""Looked for once a model: where it is cut, and what its image features look like."""


def stock_features(layout: ModelLayout) -> Features:
    """What may be kept of a class that nobody described.

    Args:
        layout: of the class.

    Returns:
        How ragged features are taken, of one image at a time, and given.
    """

    def take(model: Any, images: Mapping[str, Any]) -> Sequence[ImageRecord]:
        facts, keys = key_facts(images)
        leaves = _cut(model, layout, images).take(model, lambda: _image_features(model, images))
        levels = {}
        for name, leaf in leaves.items():
            if leaf.is_floating_point():
                levels[name] = _rows(leaf)
                facts = {**facts, _SHAPE + name: shape_of(leaf)}
            else:
                facts = {**facts, _VALUE + name: numbers_of(name, leaf)}
        return [ImageRecord(levels, facts, keys)]

    @torch.no_grad()
    def take_projected(model: Any, images: Mapping[str, Any]) -> Sequence[ImageRecord]:
        facts, keys = key_facts(images)
        return [ImageRecord(_levels(_image_features(model, images)), facts, keys)]

    def give(model: Any, features: RaggedFeatures, scales: Tensor | None) -> dict[str, Any]:
        if TOKENS in features.levels:
            table = model.get_input_embeddings().weight
            features = features.to(table.device)
            like = _OUTPUTS.get(model)
            if like is None:
                with torch.no_grad():
                    like = _OUTPUTS[model] = _image_features(model, _shown(model, layout, features.facts[0]))
            levels = {name: features.level(name, table.dtype) for name in features.levels}
        else:
            outputs = [_given(model, layout, record) for record in _records(model, layout, features)]
            like, rows = outputs[0], [_levels(output) for output in outputs]
            levels = {name: tuple(row[name] for row in rows) for name in rows[0]}
        return {"mm_encoder_outputs": {"image": _joined(like, levels)}}

    return Features(take, give, ragged=True, take_projected=take_projected)


def _cut(model: Any, layout: ModelLayout, images: Mapping[str, Any]) -> Cut:
    """Where the model is cut, tried on an image if it is not known yet."""
    if model not in _CUTS:
        _CUTS[model] = find_cut(
            model,
            _cut_modules(model, layout),
            lambda: _image_features(model, images),
            lambda output: sum((level.float().sum() for level in _levels(output).values()), torch.zeros(())),
        )
    return _CUTS[model]


def _cut_modules(model: nn.Module, layout: ModelLayout) -> list[str]:
    """The tower; its blocks, where what trains lies behind them in the tower."""
    if not all(is_below(path, layout.tower) for path in layout.projector):
        return [layout.tower]
    children = model.get_submodule(layout.tower).named_children()
    leaf, blocks = next((leaf, child) for leaf, child in children if isinstance(child, nn.ModuleList))
    return [f"{layout.tower}.{leaf}.{number}" for number in range(len(blocks))]


def _image_features(model: Any, images: Mapping[str, Any]) -> Any:
    """What the class makes of images, to its own forward's use.

    Raises:
        AssemblyError: its image features are no output with image tokens.
    """
    owners: list[Any] = [module for module in model.modules() if hasattr(module, "get_image_features")]
    if not owners:
        raise AssemblyError(f"{type(model).__name__} has no get_image_features")
    owner = owners[-1]  # those around it hand on what they are given, and name less of it
    names = inspect.signature(owner.get_image_features).parameters
    output = owner.get_image_features(**{k: v for k, v in images.items() if k in names}, return_dict=True)
    if not isinstance(output, Mapping) or output.get(TOKENS) is None:
        raise AssemblyError(f"{type(model).__name__} gives its image tokens otherwise than others")
    return output


def _levels(output: Mapping[str, Any]) -> dict[str, Tensor]:
    """The rows of an output, (tokens, channels): the image tokens, and what deeper layers get beside them."""
    levels = {TOKENS: _rows(output[TOKENS])}
    for name, value in output.items():
        if name in RAW or name == TOKENS:
            continue
        parts = (
            {f"{name}.{n}": part for n, part in enumerate(value)} if isinstance(value, (list, tuple)) else {}
        )
        for key, part in (parts or {name: value}).items():
            if _holds_tensors(part) and _rows(part).shape == levels[TOKENS].shape:
                levels[key] = _rows(part)
    return levels


def _joined(like: Mapping[str, Any], levels: Mapping[str, Sequence[Tensor]]) -> Any:
    """An output as the class's own, with the rows of all images; other fields are taken over."""
    fields: dict[str, Any] = {}
    for name, value in like.items():
        if name in levels:
            fields[name] = _contained(value, levels[name])
        elif f"{name}.0" in levels:
            fields[name] = type(value)(
                _contained(part, levels[f"{name}.{number}"]) for number, part in enumerate(value)
            )
        else:
            fields[name] = None if name in RAW else value
    return type(like)(**fields)


def _contained(like: Any, rows: Sequence[Tensor]) -> Any:
    """The rows of all images in the container that the class hands on."""
    if not isinstance(like, Tensor):
        return type(like)(rows)
    joined = torch.cat(list(rows))
    return joined.view(*(1,) * (like.dim() - 2), *joined.shape)


def _records(model: Any, layout: ModelLayout, features: RaggedFeatures) -> list[ImageRecord]:
    reference = next(model.get_submodule(layout.tower).parameters())
    return features.to(reference.device).records(reference.dtype)


def _shown(model: Any, layout: ModelLayout, facts: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """An image of the recorded shape, in white, with its own keys."""
    reference = next(model.get_submodule(layout.tower).parameters())
    names = tuple(name for name in facts if not name.startswith((_SHAPE, _VALUE)))
    return images_of(facts, names, reference.dtype, reference.device)


def _given(model: Any, layout: ModelLayout, record: ImageRecord) -> Any:
    """The class's image features of one image from its record, with graph."""
    images = _shown(model, layout, record.facts)
    kept = {name: level.reshape(record.facts[_SHAPE + name]) for name, level in record.levels.items()}
    device = next(iter(kept.values())).device
    for name, fact in record.facts.items():
        if name.startswith(_VALUE):
            kept[name.removeprefix(_VALUE)] = tensor_of(fact).to(device)
    with _cut(model, layout, images).giving(model, kept):
        return _image_features(model, images)


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(_holds_tensors(part) for part in value)
    return isinstance(value, Tensor) and value.dim() > 1


def _rows(value: Any) -> Tensor:
    """(tokens, channels) of a tensor, or of tensors one behind the other."""
    if isinstance(value, Tensor):
        return value.reshape(-1, value.shape[-1])
    return torch.cat([_rows(part) for part in value])
