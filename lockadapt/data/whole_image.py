"""Asks a processor whether the model sees whole images: fractions of an image must mean what they say."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image, ImageDraw

from lockadapt.data.pixels import pixel_inputs
from lockadapt.errors import AssemblyError

SHAPES = ((240, 120), (120, 240))
"""Width and height of the pictures that are tried: what crops or pads to a square does so to one of them."""
STRIP = 12
"""Width in pixels of the strip along an edge whose colour is changed."""


def check_whole_image(processor: Any) -> None:
    """Check that every edge of an image reaches the model, and that nothing is put around a single picture.

    Measured on drawn pictures: a strip along each edge must change what the processor makes. Where it makes
    a single picture of an image, black and white images must differ in every pixel, or some are padding.
    Tiles may be padded: the classes that have them also show the whole image.

    Args:
        processor: of the model.

    Raises:
        AssemblyError: the image processor crops or pads.
    """
    for size in SHAPES:
        black = _values(processor, Image.new("RGB", size))
        if _cuts(processor, size, black):
            raise _refused(processor, size, "cuts off an edge", "do_center_crop: false")
        white = _values(processor, Image.new("RGB", size, "white"))
        single = black.ndim == 4 and black.shape[0] == 1
        if single and bool((black == white).all(dim=1).any()):
            raise _refused(processor, size, "pads", "do_pad: false")


def crop_note(processor: Any) -> str | None:
    """What to say of a model whose processor cuts edges of images off, as CLIP's does; None if it does not.

    Args:
        processor: of the model.

    Returns:
        A line, with what to change, or None.
    """
    for size in SHAPES:
        try:
            cuts = _cuts(processor, size, _values(processor, Image.new("RGB", size)))
        except Exception:  # a shape that a class does not take is refused with the row that has it
            continue
        if cuts:
            return (
                f"{_name(processor)} cuts edges off an image of {size[0]} x {size[1]} pixels, and the model "
                "never sees them. To show whole images, copy the model and set `do_center_crop: false` and "
                "`size` to its height and width in preprocessor_config.json"
            )
    return None


def _cuts(processor: Any, size: tuple[int, int], black: torch.Tensor) -> bool:
    """Whether a strip along an edge of a black picture changes nothing."""
    for edge in _edges(size):
        picture = Image.new("RGB", size)
        ImageDraw.Draw(picture).rectangle(edge, fill="white")
        if _same(black, _values(processor, picture)):
            return True
    return False


def _values(processor: Any, picture: Image.Image) -> torch.Tensor:
    inputs = pixel_inputs(processor, picture.width * picture.height)
    made = inputs.of_pictures([picture])
    return next(
        value for value in made.values() if isinstance(value, torch.Tensor) and value.is_floating_point()
    )


def _edges(size: tuple[int, int]) -> tuple[tuple[int, int, int, int], ...]:
    width, height = size[0] - 1, size[1] - 1
    return (
        (0, 0, STRIP, height),
        (width - STRIP, 0, width, height),
        (0, 0, width, STRIP),
        (0, height - STRIP, width, height),
    )


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first, second)


def _refused(processor: Any, size: tuple[int, int], what: str, setting: str) -> AssemblyError:
    return AssemblyError(
        f"{_name(processor)} {what} of an image of {size[0]} x {size[1]} pixels, so that boxes relative to "
        "the image are not relative to what the model sees",
        where="image processor",
        fix=f"start from a model whose processor resizes whole images, or set `{setting}` and a fixed height "
        "and width in its preprocessor_config.json",
    )


def _name(processor: Any) -> str:
    return type(getattr(processor, "image_processor", processor)).__name__
