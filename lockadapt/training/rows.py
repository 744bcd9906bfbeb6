"""Whatever a user hands the trainer as rows -> encoded samples by objective, and where their images come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lockadapt.data.encode import Encoded, Encoder, EncodeReport
from lockadapt.data.pixels import FeatureInputs, ImageInputs, PixelInputs, mean_image
from lockadapt.data.readers.rows import row_to_samples
from lockadapt.data.sample import ImageRef, Sample
from lockadapt.errors import DataError
from lockadapt.models.fusions import projector_input
from lockadapt.models.parts import LLM, TOWER, stock
from lockadapt.objectives import Objective


def context_length(model: nn.Module) -> int:
    """The LLM's context in tokens."""
    config = stock(model).get_submodule(LLM).config
    return int(getattr(config, "max_position_embeddings", None) or 2048)  # type: ignore[arg-type]


def encoded_rows(
    dataset: Any, objectives: Mapping[str, Objective], encoder: Encoder
) -> tuple[dict[str, list[Encoded]], dict[str, EncodeReport]]:
    """Encodes a data set, or one for each objective.

    Raises:
        DataError: rows of an unknown shape, rows for an objective that is not there, or several objectives and one set.
    """
    if dataset is None:
        return {}, {}
    if not isinstance(dataset, Mapping):
        if len(objectives) != 1:
            raise DataError(
                "one data set for several objectives", fix="pass a mapping from objective names to rows"
            )
        dataset = {next(iter(objectives)): dataset}
    rows, reports = {}, {}
    for name, items in dataset.items():
        if name not in objectives:
            raise DataError(
                f"rows for {name!r}, which is no objective", fix=f"use one of {sorted(objectives)}"
            )
        if len(items) and isinstance(items[0], Encoded):
            rows[name] = list(items)
            continue
        reports[name] = encoder.encode(_samples(items, objectives[name].kind))
        rows[name] = reports[name].encoded
    return rows, reports


def distinct_images(rows: Sequence[Encoded]) -> dict[str, ImageRef]:
    """Every image that rows use, once, by key."""
    return {image.key: image for row in rows for image in row.images}


def image_inputs(
    model: nn.Module,
    processor: Any,
    rows: Sequence[Encoded],
    max_pixels: int,
    memory_gib: float,
    blind: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ImageInputs:
    """Tower outputs kept in memory if all of them fit in `memory_gib`, else pixels prepared when needed.

    With `blind`, every image is replaced by the mean of the rows' images.
    """
    base = stock(model)
    images = distinct_images(rows)
    replacement = mean_image(images.values(), max_pixels, image_side(processor)) if blind and images else None
    pixels = PixelInputs(processor.image_processor, max_pixels, replacement)
    if not images:
        return pixels
    features = FeatureInputs(pixels, lambda values: tower_outputs(base, values))
    first = next(iter(images.values()))
    size = features([first])["image_features"].nbytes * (1 if blind else len(images))
    if size > memory_gib * 2**30:
        return pixels
    features.fill(images.values(), progress)
    return features


def tower_outputs(model: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """Projector inputs (images, tokens, channels) for pixel values on any device, without gradient."""
    tower = model.get_submodule(TOWER)
    tower.eval()
    reference = next(tower.parameters())
    return projector_input(model, pixel_values.to(reference.device, reference.dtype))


def image_side(processor: Any) -> int:
    """Side of the square that the tower sees, in pixels."""
    from PIL import Image

    values = processor.image_processor(images=[Image.new("RGB", (8, 8))], return_tensors="pt")["pixel_values"]
    return int(values.shape[-1])


def _samples(items: Any, kind: str) -> list[Sample]:
    if len(items) and isinstance(items[0], Sample):
        return list(items)
    samples: list[Sample] = []
    for number in range(len(items)):
        samples += row_to_samples(
            items[number],
            columns={},
            kind=kind,
            prompt=None,
            root=Path("."),
            image_name=None,
            where=f"row {number}",
        )
    return samples
