"""Ten crops of a picture, so that few images are not learned by heart: the corners and the middle, each also mirrored."""

from __future__ import annotations

from PIL import Image, ImageOps

CROPS = 10
SHARE = 1 / 1.1
"""Side of a crop in sides of the picture, as LlamaGen tokenises its training images (arXiv 2406.06525)."""


def ten_crops(picture: Image.Image) -> list[Image.Image]:
    """Four corners, the middle, and the five mirrored; each SHARE as wide and as high as the picture."""
    wide, high = max(1, round(picture.width * SHARE)), max(1, round(picture.height * SHARE))
    right, below = picture.width - wide, picture.height - high
    places = [(0, 0), (right, 0), (0, below), (right, below), (right // 2, below // 2)]
    crops = [picture.crop((x, y, x + wide, y + high)) for x, y in places]
    return [*crops, *(ImageOps.mirror(crop) for crop in crops)]
