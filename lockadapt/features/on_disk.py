"""Frozen tower outputs kept on disk: each image is copied once from the mapped shard into the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lockadapt.data.image_bytes import content_keys, picture_of
from lockadapt.data.pixels import MEAN_IMAGE, PixelInputs
from lockadapt.data.sample import ImageRef
from lockadapt.errors import LockadaptError
from lockadapt.features.folder import FeatureFolder
from lockadapt.features.shards import STORED, Layout, Shard

Tower = Callable[[torch.Tensor], torch.Tensor]
"""Pixel values (n, 3, side, side) -> projector inputs (n, tokens, channels), without gradient."""


class DiskFeatures:
    """Image inputs from a `FeatureFolder`; images that it lacks go through the tower once and are added.

    Args:
        pixels: how pictures become pixel values, and what replaces them in a blind run.
        tower: pixel values -> projector inputs.
        folder: where features are kept.
        workers: processes that decode and preprocess; the tower stays in this one.
        batch_size: images that the tower sees at a time.
    """

    def __init__(
        self,
        pixels: PixelInputs,
        tower: Tower,
        folder: FeatureFolder,
        workers: int = 0,
        batch_size: int = 64,
    ) -> None:
        self.pixels, self.tower, self.folder = pixels, tower, folder
        self.workers, self.batch_size = workers, batch_size
        self.replacement = pixels.replacement
        self._keys: dict[str, str] = {}
        self._places: dict[str, tuple[Shard, int]] = {}
        self._layout: Layout | None = None

    def content(self, images: Iterable[ImageRef]) -> dict[str, ImageRef]:
        """The distinct images by content key, in the order of their first use. Each is hashed once."""
        shown = {image.key: image for image in map(self._shown, images)}
        new = {key: image for key, image in shown.items() if key not in self._keys}
        self._keys.update(content_keys(new, self.pixels.max_pixels))
        content: dict[str, ImageRef] = {}
        for key, image in shown.items():
            content.setdefault(self._keys[key], image)
        return content

    def layout(self, image: ImageRef) -> Layout:
        """What every image takes: as the index says, else by running the tower on one."""
        known = self.folder.layout()
        if known is not None:
            return known
        picture = self.pixels.picture(image)
        _, tokens, channels = self.tower(self.pixels.values([picture])).shape
        return Layout(tokens, channels, self.folder.identity["stored"])

    def fill(self, images: Iterable[ImageRef], progress: Callable[[int, int], None] | None = None) -> int:
        """Computes what the folder lacks of these images.

        Args:
            images: may repeat.
            progress: told (shards done, shards to do).

        Returns:
            How many images were computed.

        Raises:
            DiskError: they do not fit; said before anything is computed.
            DataError: an image is damaged, or changed meanwhile.
        """
        content = self.content(images)
        if not content:
            return 0
        layout = self.layout(next(iter(content.values())))
        built = self.folder.fill(content, layout, self._computed, progress)
        self._places.update(self.folder.rows(content))
        self._layout = layout
        return built

    def __call__(self, images: Sequence[ImageRef]) -> dict[str, torch.Tensor]:
        """The images' stored features, as `gather` gives them."""
        if not images:
            return {}
        shown = [self._shown(image) for image in images]
        if any(self._keys.get(image.key) not in self._places for image in shown):
            self.fill(images)
        assert self._layout is not None
        return gather([self._places[self._keys[image.key]] for image in shown], self._layout)

    def _shown(self, image: ImageRef) -> ImageRef:
        """The image itself, or what is shown in its place: that has its own bytes, and so its own key."""
        return image if self.replacement is None else ImageRef(MEAN_IMAGE, picture=self.replacement)

    def _computed(self, items: Sequence[tuple[str, ImageRef]]) -> Iterator[torch.Tensor]:
        batches = [items[at : at + self.batch_size] for at in range(0, len(items), self.batch_size)]
        loader = DataLoader(_Preprocessed(batches, self.pixels), batch_size=None, num_workers=self.workers)
        for values in loader:
            if isinstance(values, LockadaptError):
                raise values
            yield self.tower(values).cpu()


def gather(positions: Sequence[tuple[Shard, int]], layout: Layout) -> dict[str, torch.Tensor]:
    """Copies each image once from the disk's pages into one new tensor, in the stored dtype.

    Args:
        positions: shard, and row within it, of each image.
        layout: what every image takes.

    Returns:
        `image_features` (images, tokens, channels), and for int8 `image_scales`, float32 (images, 1,
        channels).
    """
    dtype = STORED[layout.stored]
    width = layout.tokens * layout.channels * dtype.itemsize
    features = torch.empty((len(positions), width), dtype=torch.uint8)
    rows = features.numpy()
    for row, (shard, position) in enumerate(positions):
        rows[row] = shard.features[position]
    batch = {"image_features": features.view(dtype).view(len(positions), layout.tokens, layout.channels)}
    if layout.stored == "int8":
        scales = np.stack(
            [shard.scales[position] for shard, position in positions if shard.scales is not None]
        )
        batch["image_scales"] = torch.from_numpy(scales).unsqueeze(1)
    return batch


class _Preprocessed(Dataset[Any]):
    """Pixel values by batch; a bad image comes as its error, whose message no process boundary would keep."""

    def __init__(self, batches: Sequence[Sequence[tuple[str, ImageRef]]], pixels: PixelInputs) -> None:
        self.batches, self.pixels = batches, pixels

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> torch.Tensor | LockadaptError:
        try:
            limit = self.pixels.max_pixels
            return self.pixels.values([picture_of(image, key, limit) for key, image in self.batches[index]])
        except LockadaptError as error:
            return error
