"""Frozen tower outputs kept on disk: each image is copied once from the mapped shard into the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lockadapt.architectures.kept import ImageRecord
from lockadapt.data.image_bytes import content_keys, picture_of
from lockadapt.data.images import open_image
from lockadapt.data.ledger import ImageLedger
from lockadapt.data.pixels import PixelInputs, ProcessorInputs
from lockadapt.data.sample import ImageRef
from lockadapt.errors import LockadaptError
from lockadapt.features.folder import AnyLayout, AnyShard, FeatureFolder
from lockadapt.features.ragged_shards import RaggedLayout, gather_ragged
from lockadapt.features.shards import STORED, Layout, Shard
from lockadapt.features.tower import Kept, Tower, on_cpu

TRIED = 8
"""Images that are computed to learn what images of different sizes take."""


class DiskFeatures:
    """Image inputs from a `FeatureFolder`; images that it lacks go through the tower once and are added.

    Args:
        pixels: how pictures become pixel values, and what replaces them in a blind run.
        tower: the image part of a batch -> what is kept of its images.
        folder: where features are kept.
        workers: processes that decode and preprocess; the tower stays in this one.
        batch_size: images that the tower sees at a time.
    """

    def __init__(
        self,
        pixels: PixelInputs | ProcessorInputs,
        tower: Tower,
        folder: FeatureFolder,
        workers: int = 0,
        batch_size: int = 64,
    ) -> None:
        self.pixels, self.tower, self.folder = pixels, tower, folder
        self.workers, self.batch_size = workers, batch_size
        self.replacement = pixels.replacement
        self._keys: dict[str, str] = {}
        self._places: dict[str, tuple[AnyShard, int]] = {}
        self._layout: AnyLayout | None = None

    def content(self, images: Iterable[ImageRef]) -> dict[str, ImageRef]:
        """The distinct images by content key, in the order of their first use.

        Each is hashed once, and not again in later runs while its file stays as it is.
        """
        shown = {image.key: image for image in map(self.pixels.shown, images)}
        new = {key: image for key, image in shown.items() if key not in self._keys}
        ledger = ImageLedger(self.folder.path.parent)
        self._keys.update(content_keys(new, self.pixels.max_pixels, ledger=ledger))
        content: dict[str, ImageRef] = {}
        for key, image in shown.items():
            content.setdefault(self._keys[key], image)
        return content

    def layout(self, images: Sequence[ImageRef]) -> AnyLayout:
        """What images take: as the index says, else by running the tower on one, or on some of every size.

        Args:
            images: all that are asked for, from `content`.

        Returns:
            The cache's layout.
        """
        known = self.folder.layout()
        return known or tried_layout(self.pixels, self.tower, images, self.folder.identity["stored"])

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
        layout = self.layout(list(content.values()))
        built = self.folder.fill(content, layout, self._computed, progress)
        self._places.update(self.folder.rows(content))
        self._layout = layout
        return built

    def __call__(self, images: Sequence[ImageRef]) -> dict[str, Any]:
        """The images' stored features, as `gather` or `gather_ragged` gives them."""
        if not images:
            return {}
        shown = [self.pixels.shown(image) for image in images]
        if any(self._keys.get(image.key) not in self._places for image in shown):
            self.fill(images)
        positions: list[Any] = [self._places[self._keys[image.key]] for image in shown]
        if isinstance(self._layout, RaggedLayout):
            return gather_ragged(positions, self._layout).batch()
        assert self._layout is not None
        return gather(positions, self._layout)

    def _computed(self, items: Sequence[tuple[str, ImageRef]]) -> Iterator[Kept]:
        batches = [items[at : at + self.batch_size] for at in range(0, len(items), self.batch_size)]
        loader = DataLoader(_Preprocessed(batches, self.pixels), batch_size=None, num_workers=self.workers)
        for values in loader:
            if isinstance(values, LockadaptError):
                raise values
            yield on_cpu(self.tower(values))


def tried_layout(
    pixels: PixelInputs | ProcessorInputs, tower: Tower, images: Sequence[ImageRef], stored: str
) -> AnyLayout:
    """Learns what images take in the cache.

    Args:
        pixels: how pictures become the image part of a batch.
        tower: computes what is kept of it.
        images: all that will be stored. One is computed; where each takes another number of tokens, up to
            `TRIED`.
        stored: dtype on disk, one of `STORED`.

    Returns:
        The layout; a ragged one says how much an image takes on average.
    """
    first, records = _tried(pixels, tower, images)
    if isinstance(first, torch.Tensor):
        return Layout(first.shape[1], first.shape[2], stored)
    return RaggedLayout.tried(records, stored)


def mean_bytes(pixels: PixelInputs | ProcessorInputs, tower: Tower, images: Sequence[ImageRef]) -> int:
    """What an image takes in memory; arguments as of `tried_layout`."""
    first, records = _tried(pixels, tower, images)
    if isinstance(first, torch.Tensor):
        return first.nbytes
    return sum(level.nbytes for record in records for level in record.levels.values()) // len(records)


def _tried(
    pixels: PixelInputs | ProcessorInputs, tower: Tower, images: Sequence[ImageRef]
) -> tuple[Kept, list[ImageRecord]]:
    """What the first image is kept as, and, where that is a record, those of some."""

    def computed(image: ImageRef) -> Kept:
        return tower(pixels.of_pictures([open_image(image, pixels.max_pixels)]))

    first = computed(images[0])
    if isinstance(first, torch.Tensor):
        return first, []
    others = images[1 :: max(1, len(images) // (TRIED - 1))][: TRIED - 1]
    return first, [*first, *(record for image in others for record in computed(image))]  # type: ignore[misc]


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
    """The image part by batch; a bad image comes as its error, whose message no process boundary keeps."""

    def __init__(
        self, batches: Sequence[Sequence[tuple[str, ImageRef]]], pixels: PixelInputs | ProcessorInputs
    ) -> None:
        self.batches, self.pixels = batches, pixels

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, Any] | LockadaptError:
        try:
            limit = self.pixels.max_pixels
            return self.pixels.of_pictures(
                [picture_of(image, key, limit) for key, image in self.batches[index]]
            )
        except LockadaptError as error:
            return error
