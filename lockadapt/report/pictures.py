"""Pictures as small data URIs, each opened as safely as in training and once a report."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageOps

from lockadapt.data.images import open_image
from lockadapt.data.sample import ImageRef
from lockadapt.errors import LockadaptError

SIDE = 112
"""Longer side in CSS pixels; enough to recognise what a question is about."""
QUALITY = 70


class Thumbnails:
    """Makes small WebP files of pictures, up to a total size.

    Args:
        max_pixels: larger images are not decoded.
        budget: bytes of all thumbnails together; pictures beyond it are left out.
    """

    def __init__(self, max_pixels: int, budget: int = 3_500_000) -> None:
        self.max_pixels, self.budget = max_pixels, budget
        self._made: dict[str, str] = {}

    def of_file(self, path: str) -> str:
        """A data URI of an image file; empty if it is gone, damaged, or beyond the budget."""
        return self._remembered(path, lambda: open_image(ImageRef(path, path=Path(path)), self.max_pixels))

    def of_picture(self, name: str, side: int = 4 * SIDE) -> str:
        """A data URI of a picture that training drew, larger than the others."""
        return self._remembered(name, lambda: Image.open(name).convert("RGB"), side)

    def _remembered(self, name: str, opened: Callable[[], Image.Image], side: int = SIDE) -> str:
        if name not in self._made:
            try:
                uri = _uri(opened(), side)
            except (LockadaptError, OSError, ValueError):
                uri = ""
            if len(uri) > self.budget:
                uri = ""
            self.budget -= len(uri)
            self._made[name] = uri
        return self._made[name]


def small(picture: Image.Image, side: int) -> Image.Image:
    """A picture that fits a square of `side` pixels; smaller ones stay as they are."""
    return picture if max(picture.size) <= side else ImageOps.contain(picture, (side, side))


def _uri(picture: Image.Image, side: int) -> str:
    file = io.BytesIO()
    small(picture, side).save(file, "WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
