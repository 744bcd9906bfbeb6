"""Writes simple pictures of one thing each with a short caption that determines it."""

from __future__ import annotations

from pathlib import Path
from random import Random

from lockadapt.errors import DiskError
from lockadapt.quickstart.drawing import Background, Scene, Thing, draw
from lockadapt.quickstart.grammar import Pair, captions
from lockadapt.quickstart.scenes import SEEN, shade, write_lines

PAPER = (236, 236, 240)  # nothing but the thing is left to the picture's tokens


def simple_scene(random: Random, pair: Pair) -> Scene:
    """One large thing near the middle of a plain background: 16 image tokens are enough to draw it."""
    colour, shape = pair
    size = random.uniform(0.28, 0.36)
    x, y = (random.uniform(0.44, 0.56) for _ in "xy")
    thing = Thing(colour, shape, x, y, size, random.uniform(-6, 6), shade(random, colour))
    return Scene((thing,), Background(PAPER, PAPER))


def make_prompts(folder: Path, seed: int = 0, train: int = 750, test: int = 50) -> None:
    """Draw `train` + `test` pictures of one thing, each pair of colour and shape equally often.

    Writes `train_prompts/*.png`, `test_prompts/*.png` (RGB, 96 x 96), `prompts_train.jsonl` and
    `prompts_test.jsonl` (image, caption such as "a red star"). Both halves show the pairs of SEEN only:
    drawing what was never shown takes far more than a quickstart. The same arguments give the same bytes.

    Args:
        folder: where to write.
        seed: of all random choices.
        train: pictures to train on.
        test: pictures to evaluate with.

    Raises:
        DiskError: the folder cannot be written.
    """
    try:
        for name, count in (("train", train), ("test", test)):
            _write_half(folder, name, Random(f"{seed}-{name}-prompts"), count, sorted(SEEN))
    except OSError as error:
        raise DiskError(
            f"the quickstart's simple images cannot be written: {error.strerror or error}",
            where=str(error.filename or folder),
            fix="choose a folder that can be written and has 10 MB of space",
        ) from error


def _write_half(folder: Path, name: str, random: Random, count: int, pairs: list[Pair]) -> None:
    (folder / f"{name}_prompts").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for number in range(count):
        scene = simple_scene(random, pairs[number % len(pairs)])
        image = f"{name}_prompts/{number:05d}.png"
        draw(scene).save(folder / image, compress_level=1)
        rows.append({"image": image, "caption": captions(scene)[0]})
    random.shuffle(rows)
    write_lines(folder / f"prompts_{name}.jsonl", rows)
