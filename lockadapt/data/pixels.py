"""Turns image references into pixel values for the tower, for batches that come without kept features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol

import torch
from PIL import Image

from lockadapt.data.images import open_image
from lockadapt.data.sample import ImageRef

MEAN_IMAGE = "<mean image>"
"""Key that all images share in a blind run."""

Frozen = Literal["tower", "image_tokens", "crops", "nothing"]
"""What of an image is computed once: the tower's outputs, the codes of an image tokenizer, or those of ten
crops as well."""


class ImageInputs(Protocol):
    """Gives the image part of a batch: a name that objectives know and a tensor with one entry an image.

    Attributes:
        replacement: shown instead of every image (blind runs), or None.
    """

    replacement: Image.Image | None

    def __call__(self, images: Sequence[ImageRef]) -> dict[str, torch.Tensor]:
        """`{"pixel_values": (images, 3, side, side)}` or `{"image_features": (images, tokens, channels)}`.

        Features may come in the dtype that they are stored in; int8 ones with `"image_scales"`, float32
        (images, 1, channels).
        """
        ...


class PixelInputs:
    """Opens and preprocesses images when they are needed.

    Args:
        image_processor: the stock image processor of the model.
        max_pixels: larger images are refused before decoding.
        replacement: shown instead of every image (blind runs).
    """

    def __init__(self, image_processor: Any, max_pixels: int, replacement: Image.Image | None = None) -> None:
        self.image_processor, self.max_pixels, self.replacement = image_processor, max_pixels, replacement

    def picture(self, image: ImageRef) -> Image.Image:
        """The RGB picture that the model will see, before resizing."""
        return self.replacement if self.replacement is not None else open_image(image, self.max_pixels)

    def __call__(self, images: Sequence[ImageRef]) -> dict[str, torch.Tensor]:
        """Preprocess the images; an empty dictionary for none."""
        if not images:
            return {}
        return {"pixel_values": self.values([self.picture(image) for image in images])}

    def values(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Pixel values (pictures, 3, side, side) of RGB pictures."""
        return self.image_processor(images=list(pictures), return_tensors="pt")["pixel_values"]


def mean_image(images: Iterable[ImageRef], max_pixels: int, side: int, limit: int = 512) -> Image.Image:
    """Average up to `limit` images pixel by pixel, each resized to `side` x `side`.

    The result carries no information about any one image.
    """
    total, count = torch.zeros(side, side, 3, dtype=torch.float64), 0
    for image in images:
        if count == limit:
            break
        picture = open_image(image, max_pixels).resize((side, side), Image.Resampling.BILINEAR)
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(side, side, 3)
        total, count = total + pixels, count + 1
    mean = (total / max(count, 1)).round().to(torch.uint8)
    return Image.frombytes("RGB", (side, side), mean.numpy().tobytes())
