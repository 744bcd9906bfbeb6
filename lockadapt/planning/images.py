"""Images of a plan: pictures of the rows' own sizes that nobody opens, and features without numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from lockadapt.architectures import architecture_of
from lockadapt.architectures.base import unwrap_model
from lockadapt.architectures.features import projector_input
from lockadapt.data.client_ids import MAX_PIXELS
from lockadapt.data.encode import Encoded
from lockadapt.data.pixels import ImageInputs, ProcessorInputs, pixel_inputs
from lockadapt.data.sample import ImageRef
from lockadapt.features.in_memory import FeatureInputs
from lockadapt.features.on_disk import mean_bytes, tried_layout
from lockadapt.features.shards import Layout
from lockadapt.features.tower import Kept, image_side, tower_outputs
from lockadapt.planning.fake import FakeFloats

BLANK = Image.new("RGB", (64, 64), "white")


class PlannedImages(Protocol):
    """What a plan asks of images, whose sizes it may know, and whose pictures it does not."""

    def inputs(self, cached: bool) -> ImageInputs:
        """Where batches get their images from: kept features, or pixels."""
        ...

    def memory_bytes(self, images: Sequence[ImageRef]) -> int:
        """What all features of these distinct images take in memory."""
        ...

    def disk_bytes(self, images: Sequence[ImageRef], stored: str) -> int:
        """What all features of these distinct images take on disk, in one of `shards.STORED`."""
        ...

    def tokens(self, items: Sequence[Encoded]) -> float:
        """Tokens that an image of these rows gives the LLM, on average."""
        ...

    def run_tower(self, images: Sequence[ImageRef]) -> int:
        """Runs the tower on a few of these images, within the modes of a plan; gives their number."""
        ...

    def keep_projected(self) -> None:
        """Says that the projector does not train, so that its outputs may be kept."""
        ...


class UniformImages:
    """Images that one processor brings to one size.

    Args:
        model: on fake tensors.
        processor: the model's.
        mode: of the fake tensors.
        dtype: of the arithmetic.
    """

    replacement: Image.Image | None = None

    def __init__(self, model: Any, processor: Any, mode: FakeTensorMode, dtype: torch.dtype) -> None:
        self.model, self.processor, self.mode, self.dtype = model, processor, mode, dtype
        with FakeFloats(mode), training_arithmetic(dtype):
            seen = self._tower_output()
        self.shape = int(seen.shape[1]), int(seen.shape[2])
        """Tokens and channels of what the tower gives the projector for one image."""
        self.cached = False

    def inputs(self, cached: bool) -> ImageInputs:
        """See `PlannedImages`."""
        self.cached = cached
        return self

    def __call__(self, images: Sequence[ImageRef]) -> dict[str, torch.Tensor]:
        """The image part of a batch."""
        if not images:
            return {}
        side = image_side(self.processor)
        if not self.cached and architecture_of(self.model).inputs.by_value:
            return {"pixel_values": torch.ones(len(images), 3, side, side)}
        with self.mode:
            if self.cached:
                return {"image_features": torch.empty((len(images), *self.shape), dtype=self.dtype)}
            return {"pixel_values": torch.empty(len(images), 3, side, side)}

    def memory_bytes(self, images: Sequence[ImageRef]) -> int:
        """See `PlannedImages`."""
        tokens, channels = self.shape
        return len(images) * tokens * channels * self.dtype.itemsize

    def disk_bytes(self, images: Sequence[ImageRef], stored: str) -> int:
        """See `PlannedImages`."""
        return len(images) * Layout(*self.shape, stored).image_bytes

    def tokens(self, items: Sequence[Encoded]) -> float:
        """See `PlannedImages`."""
        return self.shape[0]

    def run_tower(self, images: Sequence[ImageRef]) -> int:
        """See `PlannedImages`."""
        self._tower_output()
        return 1

    def keep_projected(self) -> None:
        """See `PlannedImages`: what is kept is what the projector gets, whether it trains or not."""

    def _tower_output(self) -> torch.Tensor:
        self.cached = False
        pixels = self([ImageRef("any")])["pixel_values"]
        return projector_input(self.model, pixels.to(self.dtype))


class StockImages:
    """Images of a stock processor, each in a size of its own: it is given white pictures of their sizes.

    Args:
        model: on fake tensors.
        processor: the model's.
        mode: of the fake tensors.
    """

    def __init__(self, model: Any, processor: Any, mode: FakeTensorMode) -> None:
        self.model, self.processor, self.mode, self.projected = model, processor, mode, False

    @cached_property
    def pixels(self) -> ProcessorInputs:
        """White pictures in their own sizes, by the stock processor."""
        pixels = pixel_inputs(self.processor, MAX_PIXELS, BLANK)
        assert isinstance(pixels, ProcessorInputs)
        return pixels

    @cached_property
    def kept(self) -> FeatureInputs:
        """Features of such pictures, without numbers."""
        return FeatureInputs(self.pixels, self._tower, batch_size=1)

    def inputs(self, cached: bool) -> ImageInputs:
        """See `PlannedImages`."""
        return self.kept if cached else self.pixels

    def memory_bytes(self, images: Sequence[ImageRef]) -> int:
        """See `PlannedImages`."""
        if not images:
            return 0
        return mean_bytes(self.pixels, self._tower, self._blank(images)) * len(images)

    def disk_bytes(self, images: Sequence[ImageRef], stored: str) -> int:
        """See `PlannedImages`."""
        if not images:
            return 0
        layout = tried_layout(self.pixels, self._tower, self._blank(images), stored)
        return layout.image_bytes * len(images)

    def tokens(self, items: Sequence[Encoded]) -> float:
        """See `PlannedImages`."""
        count = sum(len(item.images) for item in items)
        token = self.pixels.stock.token
        return sum(int((item.input_ids == token).sum()) for item in items) / max(count, 1)

    def run_tower(self, images: Sequence[ImageRef]) -> int:
        """See `PlannedImages`."""
        shown = self._blank(images)[:: max(1, len(images) // TRIED)][:TRIED]
        for image in shown:
            self._tower(self.pixels([image]))
        return len(shown)

    def keep_projected(self) -> None:
        """See `PlannedImages`."""
        self.projected = True

    def _blank(self, images: Sequence[ImageRef]) -> list[ImageRef]:
        return [self.pixels.shown(image) for image in images]

    def _tower(self, part: Mapping[str, Any]) -> Kept:
        with FakeFloats(self.mode):
            return tower_outputs(unwrap_model(self.model), part, self.projected, ragged=True)


TRIED = 4
"""Images whose arithmetic is counted."""


def training_arithmetic(dtype: torch.dtype) -> Any:
    """Autocast, as the trainer has it for 16-bit weights."""
    return torch.autocast("cpu", dtype) if dtype != torch.float32 else contextlib.nullcontext()
