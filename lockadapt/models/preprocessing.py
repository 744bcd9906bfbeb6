"""Turn a tower's own image processor into one that makes every image the same square."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, ViTImageProcessorPil

from lockadapt.errors import AssemblyError, LockadaptError
from lockadapt.models.sources import Source, loading

PROBE_COLOURS = ((0, 0, 0), (255, 255, 255), (200, 90, 30))
"""Plain images: resizing cannot change them, so only scaling and normalising show."""
PROBE_SIDES = (96, 160)
EXTREME_SIZES = ((1, 1), (1, 40), (40, 1), (33, 64))


def load_image_processor(source: Source) -> Any:
    """Loads the tower's own image processor, on PIL.

    Args:
        source: the tower.

    Returns:
        The image processor.

    Raises:
        SetupError: there is none, or it cannot be read.
    """
    with loading(source, "tower's image processor (preprocessor_config.json)"):
        return AutoImageProcessor.from_pretrained(source.name, backend="pil", **source.arguments)


def square_processor(own: Any, image_size: int | None, where: str) -> tuple[Any, int]:
    """Makes an image processor that resizes the whole image to a square.

    Scaling and normalisation stay the tower's own, which is checked on plain images. The crop goes: it would
    cut off edges that a question may be about, and a resize of the shortest edge blows up a 1 x 2000 image.

    Args:
        own: the tower's image processor.
        image_size: side; `None` for the side that the tower's own preprocessing ends with.
        where: the tower, for messages.

    Returns:
        The image processor, and the side of its square in pixels.

    Raises:
        AssemblyError: there is no such side, or normalisation cannot be reproduced.
    """
    side = image_size or _own_side(own, where)
    size = {"height": side, "width": side}
    settings = {
        **own.to_dict(),
        **_timm_settings(own),
        "do_convert_rgb": True,
        "do_resize": True,
        "size": size,
        "do_center_crop": False,
        "crop_size": size,
        "do_pad": False,
    }
    for build in (type(own).from_dict, _generic):
        try:
            processor = build(settings)
            if _same_colours(own, processor) and _always_square(processor, side):
                return processor, side
        except (TypeError, ValueError, KeyError, AttributeError, RuntimeError):
            continue
    raise AssemblyError(
        f"{type(own).__name__} does more than resize, scale and normalise, so its images cannot be "
        "made square",
        where=where,
        fix="put a preprocessor_config.json of type ViTImageProcessor with the right mean and std in the "
        "folder",
    )


def pixels(processor: Any, images: list[Image.Image]) -> Tensor:
    """RGB images -> pixel values, (images, channels, height, width), float32."""
    values = processor(images=images, return_tensors="pt")["pixel_values"]
    if isinstance(values, Tensor) and values.ndim == 5:  # the images of one row
        values = values.flatten(0, 1)
    if not isinstance(values, Tensor) or values.ndim != 4 or len(values) != len(images):
        raise ValueError("not one picture per image")
    return values.float()


def _own_side(own: Any, where: str) -> int:
    sides: set[int] = set()
    for probe in PROBE_SIDES:
        try:
            sides |= set(pixels(own, [Image.new("RGB", (probe, probe), PROBE_COLOURS[2])]).shape[-2:])
        except LockadaptError:
            raise
        except Exception as error:
            raise AssemblyError(
                f"{type(own).__name__} fails on a plain image: {error}", where=where
            ) from error
    if len(sides) != 1:
        raise AssemblyError(
            "the tower's own preprocessing has no fixed square size", where=where, fix="give `image_size`"
        )
    return int(sides.pop())


def _generic(settings: dict[str, Any]) -> Any:
    names = (
        *("do_convert_rgb", "do_resize", "size", "resample", "crop_size"),
        *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
    )
    return ViTImageProcessorPil(**{name: settings[name] for name in names if name in settings})


def _timm_settings(own: Any) -> dict[str, Any]:
    """What an image processor around timm's transforms keeps in timm's words, in Transformers'."""
    timm: Any = getattr(own, "data_config", None)
    if not isinstance(timm, dict):
        return {}
    return {
        "resample": getattr(Image.Resampling, str(timm["interpolation"]).upper()),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(timm["mean"]),
        "image_std": list(timm["std"]),
    }


def _same_colours(own: Any, processor: Any) -> bool:
    """Whether plain images come out in the same colours, whatever the sizes."""
    for colour in PROBE_COLOURS:
        image = Image.new("RGB", (PROBE_SIDES[1], PROBE_SIDES[1]), colour)
        first, second = (pixels(candidate, [image]).mean(dim=(0, 2, 3)) for candidate in (own, processor))
        if first.shape != second.shape or not torch.allclose(first, second, atol=1e-4):
            return False
    return True


def _always_square(processor: Any, side: int) -> bool:
    images = [Image.new("RGB", size, PROBE_COLOURS[2]) for size in EXTREME_SIZES]
    return tuple(pixels(processor, images).shape[-2:]) == (side, side)
