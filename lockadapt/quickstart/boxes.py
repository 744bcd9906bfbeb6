"""Scenes with a phrase for each thing and its box, which is known exactly; combinations as in `scenes`."""

from __future__ import annotations

from pathlib import Path
from random import Random

from lockadapt.errors import DiskError
from lockadapt.quickstart.drawing import SIDE, Scene, draw, extent
from lockadapt.quickstart.grammar import Pair, pair
from lockadapt.quickstart.scenes import HELD_OUT, SEEN, random_scene, write_lines


def make_boxes(folder: Path, seed: int = 0, train: int = 6000, test: int = 300) -> None:
    """Draw scenes and write a row for each thing in them: image, phrase and box.

    Writes `train/*.png`, `test/*.png` (RGB, 96 x 96), `train.jsonl` and `test.jsonl` (image, phrase, box:
    left, top, right, bottom in pixels). Each phrase ("the red circle") names one thing of its scene.
    Train scenes hold pairs of SEEN only, test scenes those of HELD_OUT only. The same arguments give the same
    bytes.

    Args:
        folder: where to write.
        seed: of all random choices.
        train: scenes to train on.
        test: scenes to evaluate with.

    Raises:
        DiskError: the folder cannot be written.
    """
    try:
        for name, count, pairs in (("train", train, SEEN), ("test", test, HELD_OUT)):
            _write_half(folder, name, Random(f"{seed}-boxes-{name}"), count, pairs)
    except OSError as error:
        raise DiskError(
            f"the scenes cannot be written: {error.strerror or error}",
            where=str(error.filename or folder),
            fix="choose a folder that can be written and has 60 MB of space",
        ) from error


def _write_half(folder: Path, name: str, random: Random, count: int, pairs: frozenset[Pair]) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for number in range(count):
        scene = distinct_scene(random, pairs)
        image = f"{name}/{number:05d}.png"
        draw(scene).save(folder / image, compress_level=1)
        for thing in scene.things:
            box = [round(edge * SIDE, 2) for edge in extent(thing)]
            rows.append({"image": image, "phrase": f"the {thing.colour} {thing.shape}", "box": box})
    write_lines(folder / f"{name}.jsonl", rows)


def distinct_scene(random: Random, pairs: frozenset[Pair]) -> Scene:
    """A scene whose things all differ, so that a phrase means exactly one of them."""
    while True:
        scene = random_scene(random, pairs)
        if len({pair(thing) for thing in scene.things}) == len(scene.things):
            return scene
