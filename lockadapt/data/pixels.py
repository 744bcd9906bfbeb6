"""Turns image references into pixel values for the tower, for batches that come without kept features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol

import torch
from PIL import Image

from lockadapt.architectures import inputs_of
from lockadapt.architectures.generic.inputs import StockInputs
from lockadapt.data.images import image_size, open_image
from lockadapt.data.sample import ImageRef

MEAN_IMAGE = "<mean image>"
"""Key that all images share in a blind run."""

Frozen = Literal["tower", "image_tokens", "crops", "nothing"]
"""What of an image is computed once: the tower's outputs, the ids of an image tokenizer, or those of ten
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

    def shown(self, image: ImageRef) -> ImageRef:
        """The image itself, or what is shown in its place, which has a key of its own."""
        return image if self.replacement is None else ImageRef(MEAN_IMAGE, picture=self.replacement)

    def of_pictures(self, pictures: Sequence[Image.Image]) -> dict[str, Any]:
        """The image part of a batch of RGB pictures."""
        return {"pixel_values": self.values(pictures)}

    def values(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Pixel values (pictures, 3, side, side) of RGB pictures."""
        values = self.image_processor(images=list(pictures), return_tensors="pt")["pixel_values"]
        return values.flatten(0, -4)  # some processors put the images of a row below it


class ProcessorInputs:
    """Lets a stock processor whose images have sizes of their own preprocess the images of whole rows.

    Args:
        stock: the processor, looked at.
        max_pixels: larger images are refused before decoding.
        replacement: shown instead of every image (blind runs), in each image's own size.
    """

    def __init__(self, stock: StockInputs, max_pixels: int, replacement: Image.Image | None = None) -> None:
        self.stock, self.max_pixels, self.replacement = stock, max_pixels, replacement
        self._sizes: dict[str, tuple[int, int]] = {}

    def picture(self, image: ImageRef) -> Image.Image:
        """The RGB picture that the model will see, before resizing."""
        picture = open_image(image, self.max_pixels)
        return picture if self.replacement is None else self.replacement.resize(picture.size)

    def __call__(self, images: Sequence[ImageRef]) -> dict[str, Any]:
        """Preprocess images, each of which stands in a row of its own."""
        return self.of_rows([[image] for image in images])

    def shown(self, image: ImageRef) -> ImageRef:
        """The image itself, or what is shown in its place: one picture for all images of a size."""
        if self.replacement is None:
            return image
        width, height = size = self.size(image)
        return ImageRef(f"{MEAN_IMAGE} {width} x {height}", picture=self.replacement.resize(size))

    def size(self, image: ImageRef) -> tuple[int, int]:
        """Width and height in pixels, read once."""
        if image.key not in self._sizes:
            self._sizes[image.key] = image_size(image, self.max_pixels)
        return self._sizes[image.key]

    def as_alone(self, row: Sequence[ImageRef]) -> bool:
        """Whether each image of a row gives the same tokens as in a row of its own."""
        sizes = tuple(self.size(image) for image in row)
        alone = tuple(self.stock.expansions((size,))[0] for size in sizes)
        return len(row) < 2 or self.stock.expansions(sizes) == alone

    def of_pictures(self, pictures: Sequence[Image.Image]) -> dict[str, Any]:
        """Every key that the processor makes of RGB pictures, each of which stands in a row of its own."""
        return self.stock.image_keys([[picture] for picture in pictures])

    def of_rows(self, rows: Sequence[Sequence[ImageRef]]) -> dict[str, Any]:
        """Every key that the processor makes of the images of rows, and `processor_keys`, their names."""
        made = self.stock.image_keys([[self.picture(image) for image in row] for row in rows])
        return {**made, "processor_keys": tuple(made)}

    def of_tokens(self, input_ids: torch.Tensor, predicting: torch.Tensor | None = None) -> dict[str, Any]:
        """Every key that the processor makes of tokens, and `token_keys`, their names; see `TokenKey.of`."""
        made = {name: key.of(input_ids, predicting) for name, key in self.stock.token_keys.items()}
        return {**made, "token_keys": tuple(made)}


def pixel_inputs(
    processor: Any, max_pixels: int, replacement: Image.Image | None = None
) -> PixelInputs | ProcessorInputs:
    """Makes images pixels, by any stock processor.

    Args:
        processor: the model's.
        max_pixels: larger images are refused before decoding.
        replacement: shown instead of every image (blind runs).

    Returns:
        Image inputs.
    """
    if inputs_of(processor).stock:
        return ProcessorInputs(StockInputs(processor), max_pixels, replacement)
    return PixelInputs(processor.image_processor, max_pixels, replacement)


def image_part(
    images: ImageInputs,
    samples: Sequence[Sequence[ImageRef]],
    input_ids: torch.Tensor,
    rows: Sequence[int] | None = None,
    predicting: torch.Tensor | None = None,
) -> dict[str, Any]:
    """Makes what a batch has of its images, beside their tokens.

    Args:
        images: where they come from.
        samples: the images of each sample, or of samples that share them, in reading order.
        input_ids: int64 (rows, tokens).
        rows: the row of each; default: one behind the other.
        predicting: bool (rows, tokens), the positions that are scored; None: nothing is.

    Returns:
        Arguments of forward.
    """
    if isinstance(images, ProcessorInputs):
        keys = images.of_rows(samples)
        own = images.stock.row_keys(input_ids, {name: keys[name] for name in keys["processor_keys"]})
        names = (*keys["processor_keys"], *own)
        return {**keys, **own, "processor_keys": names, **images.of_tokens(input_ids, predicting)}
    numbers = range(len(samples)) if rows is None else rows
    shown = [(int(row), image) for row, sample in zip(numbers, samples, strict=True) for image in sample]
    owners = {"image_rows": torch.tensor([row for row, _ in shown])} if shown else {}
    made = {**images([image for _, image in shown]), **owners}
    # Kept features say nothing of tokens; what preprocessed their images does.
    pixels = getattr(images, "pixels", None)
    if not isinstance(pixels, ProcessorInputs):
        return made
    return {**made, **pixels.of_tokens(input_ids, predicting)}


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
