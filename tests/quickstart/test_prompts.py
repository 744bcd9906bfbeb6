"""Pictures with prompts: combinations are disjoint and even, captions name what is drawn, the same seed gives the same."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from lockadapt.errors import DiskError
from lockadapt.quickstart.drawing import COLOURS, SIDE, draw
from lockadapt.quickstart.prompts import PAPER, make_prompts, simple_scene
from lockadapt.quickstart.scenes import HELD_OUT, SEEN


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_halves_show_seen_combinations_equally_often(tmp_path: Path) -> None:
    make_prompts(tmp_path, train=75, test=50)
    for name, each in (("train", 3), ("test", 2)):
        told = Counter(row["caption"] for row in rows(tmp_path / f"prompts_{name}.jsonl"))
        assert told == {f"a {colour} {shape}": each for colour, shape in SEEN}


def test_captions_name_what_is_drawn(tmp_path: Path) -> None:
    make_prompts(tmp_path, train=25, test=5)
    for row in rows(tmp_path / "prompts_train.jsonl") + rows(tmp_path / "prompts_test.jsonl"):
        with Image.open(tmp_path / row["image"]) as picture:
            middle = np.asarray(picture.convert("RGB"))[SIDE // 2, SIDE // 2].astype(int)
        nearest = min(COLOURS, key=lambda colour: np.abs(middle - COLOURS[colour]).sum())
        assert nearest == row["caption"].split()[1]


def test_same_seed_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_prompts(tmp_path / name, seed, train=5, test=5)
    for file in ("prompts_train.jsonl", "train_prompts/00003.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    picture = "train_prompts/00003.png"
    assert (tmp_path / "a" / picture).read_bytes() != (tmp_path / "c" / picture).read_bytes()


@pytest.mark.parametrize("seed", range(10))
def test_the_thing_lies_inside_and_is_large(seed: int) -> None:
    random = Random(seed)
    pixels = np.asarray(draw(simple_scene(random, random.choice(sorted(SEEN | HELD_OUT)))))
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == PAPER).all()
    assert (pixels != PAPER).any(-1).mean() > 0.08


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="simple images"):
        make_prompts(tmp_path / "file", train=1, test=1)
