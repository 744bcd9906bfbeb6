"""Ten crops: corners, middle, and the same mirrored."""

from __future__ import annotations

import numpy as np
from PIL import Image

from lockadapt.features.crops import CROPS, ten_crops


def test_where_they_lie() -> None:
    across, down = np.meshgrid(np.arange(110), np.arange(55))
    picture = Image.fromarray(np.stack([across, down, 0 * down], -1).astype(np.uint8))
    crops = [np.asarray(crop) for crop in ten_crops(picture)]
    assert len(crops) == CROPS
    assert {crop.shape for crop in crops} == {(50, 100, 3)}
    assert [tuple(crop[0, 0, :2]) for crop in crops[:5]] == [(0, 0), (10, 0), (0, 5), (10, 5), (5, 2)]
    for crop, mirrored in zip(crops[:5], crops[5:], strict=True):
        assert (crop[:, ::-1] == mirrored).all()
