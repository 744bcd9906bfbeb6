"""Calibrates the projector of an assembled model on images, and on what is said about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from PIL import Image
from torch import Tensor

from lockadapt.architectures.align import word_targets
from lockadapt.architectures.calibrate import Calibration, calibrate_projector, embedding_rms
from lockadapt.architectures.features import kept_outputs

IMAGES_AT_ONCE = 16
PIXELS, SIZES = "pixel_values", "image_sizes"
"""What an image processor makes that the frozen part reads."""

CalibrationData = tuple[Iterable[Image.Image] | None, Sequence[Sequence[str]] | None]
"""Images to calibrate on, and what is said about each."""


def calibrate_on_images(model: Any, processor: Any, calibration: CalibrationData) -> Calibration:
    """Runs the tower on images, a few at a time, and starts the projector from what it gives.

    Args:
        model: a Transformers model whose projector is fresh; changed in place.
        processor: of the model.
        calibration: images, and texts about each; None: none.

    Returns:
        What was used.

    Raises:
        DataError, AssemblyError: as `calibrate_projector`.
    """
    images, texts = calibration
    if images is None:
        return Calibration(0)
    shown_in: list[int] = []

    def features() -> Iterator[Tensor]:
        numbered = enumerate(images)
        while batch := list(islice(numbered, IMAGES_AT_ONCE)):
            numbers, pictures = zip(*batch, strict=True)
            shown = processor.image_processor(images=list(pictures), return_tensors="pt")
            levels = projector_features(
                model, {name: shown[name] for name in (PIXELS, SIZES) if name in shown}
            )
            repeated = sum(map(len, levels)) // len(batch)
            shown_in.extend(number for number in numbers for _ in range(repeated))
            yield from levels

    def words() -> Tensor:
        return word_targets(model, processor.tokenizer, texts or ())[shown_in]

    return calibrate_projector(model, features(), embedding_rms(model), words if texts else None)


def projector_features(model: Any, images: Mapping[str, Tensor]) -> list[Tensor]:
    """Compute what enters the projector.

    Args:
        model: a Transformers model.
        images: what its image processor made of them.

    Returns:
        (images, tokens, channels): all images in one tensor, or each by itself.
    """
    floats = {name: t.to(model.dtype) if t.is_floating_point() else t for name, t in images.items()}
    kept = kept_outputs(model, floats)
    if isinstance(kept, Tensor):
        return [kept]
    return [level[None] for record in kept for level in record.levels.values()]
