"""Turns image references into pixel values for the tower, or into features kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from PIL import Image

from lockadapt.data.images import open_image
from lockadapt.data.sample import ImageRef

MEAN_IMAGE = "<mean image>"
"""Key that all images share in a blind run."""


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


class FeatureInputs:
    """Keeps the frozen tower's outputs: every distinct image goes through the tower once.

    Args:
        pixels: where pictures come from.
        tower: pixel values (n, 3, side, side) -> projector inputs (n, tokens, channels), without gradient.
        batch_size: images that the tower sees at a time.
    """

    def __init__(
        self, pixels: PixelInputs, tower: Callable[[torch.Tensor], torch.Tensor], batch_size: int = 64
    ) -> None:
        self.pixels, self.tower, self.batch_size = pixels, tower, batch_size
        self.replacement = pixels.replacement
        self._rows: dict[str, int] = {}
        self._store: torch.Tensor | None = None

    def key(self, image: ImageRef) -> str:
        """What is remembered under one entry."""
        return MEAN_IMAGE if self.pixels.replacement is not None else image.key

    def fill(self, images: Iterable[ImageRef], progress: Callable[[int, int], None] | None = None) -> None:
        """Runs the tower over the images that are not known yet."""
        new = {self.key(image): image for image in images if self.key(image) not in self._rows}
        keys, done = list(new), len(self._rows)
        for start in range(0, len(keys), self.batch_size):
            part = keys[start : start + self.batch_size]
            features = self.tower(self.pixels([new[key] for key in part])["pixel_values"]).cpu()
            if self._store is None:
                self._store = features.new_empty((len(keys), *features.shape[1:]))
            elif len(self._store) < done + len(keys):
                grown = self._store.new_empty((done + len(keys), *self._store.shape[1:]))
                grown[: len(self._store)] = self._store
                self._store = grown
            at = len(self._rows)
            self._store[at : at + len(part)] = features
            self._rows.update({key: at + i for i, key in enumerate(part)})
            if progress:
                progress(start + len(part), len(keys))

    def __call__(self, images: Sequence[ImageRef]) -> dict[str, torch.Tensor]:
        """Look the images up, after running the tower over those that are not known yet."""
        if not images:
            return {}
        if any(self.key(image) not in self._rows for image in images):
            self.fill(images)
        assert self._store is not None
        return {
            "image_features": self._store[torch.tensor([self._rows[self.key(image)] for image in images])]
        }


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
