"""Frozen tower outputs kept in memory: every distinct image goes through the tower once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from lockadapt.architectures.kept import ImageRecord, RaggedFeatures
from lockadapt.data.images import open_image
from lockadapt.data.pixels import PixelInputs, ProcessorInputs
from lockadapt.data.sample import ImageRef
from lockadapt.features.tower import Tower, on_cpu


class FeatureInputs:
    """Keeps the frozen tower's outputs: every distinct image goes through the tower once.

    Args:
        pixels: where pictures come from.
        tower: the image part of a batch -> what is kept of its images.
        batch_size: images that the tower sees at a time.
    """

    def __init__(self, pixels: PixelInputs | ProcessorInputs, tower: Tower, batch_size: int = 64) -> None:
        self.pixels, self.tower, self.batch_size = pixels, tower, batch_size
        self.replacement = pixels.replacement
        self._rows: dict[str, int] = {}
        self._store: torch.Tensor | None = None
        self._records: list[ImageRecord] = []

    def __len__(self) -> int:
        return len(self._rows)

    def fill(self, images: Iterable[ImageRef], progress: Callable[[int, int], None] | None = None) -> None:
        """Runs the tower over the images that are not known yet."""
        shown = {image.key: image for image in map(self.pixels.shown, images)}
        new = [image for key, image in shown.items() if key not in self._rows]
        done = len(self._rows)
        for start in range(0, len(new), self.batch_size):
            part = new[start : start + self.batch_size]
            pictures = [open_image(image, self.pixels.max_pixels) for image in part]
            features = on_cpu(self.tower(self.pixels.of_pictures(pictures)))
            at = len(self._rows)
            if isinstance(features, torch.Tensor):
                self._grow(features, done + len(new))[at : at + len(part)] = features
            else:
                self._records += features
            self._rows.update({image.key: at + i for i, image in enumerate(part)})
            if progress:
                progress(start + len(part), len(new))

    def __call__(self, images: Sequence[ImageRef]) -> dict[str, Any]:
        """Look the images up, after running the tower over those that are not known yet."""
        if not images:
            return {}
        keys = [self.pixels.shown(image).key for image in images]
        if any(key not in self._rows for key in keys):
            self.fill(images)
        rows = [self._rows[key] for key in keys]
        if self._store is None:
            return RaggedFeatures.joined([self._records[row] for row in rows]).batch()
        return {"image_features": self._store[torch.tensor(rows)]}

    def _grow(self, features: torch.Tensor, count: int) -> torch.Tensor:
        """The store, with place for `count` images like these."""
        if self._store is None:
            self._store = features.new_empty((count, *features.shape[1:]))
        elif len(self._store) < count:
            grown = self._store.new_empty((count, *self._store.shape[1:]))
            grown[: len(self._store)] = self._store
            self._store = grown
        return self._store
