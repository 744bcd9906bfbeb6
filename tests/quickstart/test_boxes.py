"""The box of a thing is what its pixels cover, and phrases name one thing each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from lockadapt.quickstart.boxes import make_boxes
from lockadapt.quickstart.drawing import SHAPES, SIDE, Scene, Thing, draw, extent
from lockadapt.quickstart.scenes import HELD_OUT


def test_box_is_what_is_drawn() -> None:
    for shape in SHAPES:
        thing = Thing("black", shape, 0.45, 0.55, 0.25, 9.0)
        dark = np.asarray(draw(Scene((thing,))).convert("L")) < 200
        down, across = np.nonzero(dark)
        drawn = np.array([across.min(), down.min(), across.max() + 1, down.max() + 1])
        assert np.abs(drawn - np.array(extent(thing)) * SIDE).max() <= 1.5, shape


def test_rows(tmp_path: Path) -> None:
    make_boxes(tmp_path, train=4, test=6)
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    assert len({(row["image"], row["phrase"]) for row in rows}) == len(rows) >= 6
    assert {row["phrase"] for row in rows} <= {f"the {colour} {shape}" for colour, shape in HELD_OUT}
    for row in rows:
        assert Image.open(tmp_path / row["image"]).size == (SIDE, SIDE)
        left, top, right, bottom = row["box"]
        assert 0 <= left < right <= SIDE
        assert 0 <= top < bottom <= SIDE
