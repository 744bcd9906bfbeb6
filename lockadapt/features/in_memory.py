"""Frozen tower outputs kept in memory: every distinct image goes through the tower once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from lockadapt.data.pixels import MEAN_IMAGE, PixelInputs
from lockadapt.data.sample import ImageRef


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
