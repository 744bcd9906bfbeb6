"""Classify images by the names of their classes alone, offline: train to embed, then name the classes.

    python examples/zero_shot.py --output zero-shot

Image tower and LLM stay as they are; two projections learn, from captions, which text belongs to which image.
No class is trained: `templates` puts the names into sentences, and the nearest sentence is the answer.
"""

from __future__ import annotations

import argparse
import json
import random
from importlib.resources import files
from pathlib import Path

from PIL import Image, ImageDraw

import lockadapt

ASSETS = files("lockadapt.quickstart").joinpath("assets")
COLOURS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 220), "yellow": (235, 200, 40)}
SHAPES = ("circle", "square")


def main() -> None:
    """Draw data, train, evaluate and print the accuracy."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="new folder")
    parser.add_argument("--images", type=int, default=400, help="images to train on")
    parser.add_argument("--steps", type=int, default=150)
    given = parser.parse_args()
    draw_data(given.output / "data", given.images)

    def rows(half: str) -> dict[str, str]:
        return {"format": "jsonl", "path": str(given.output / "data" / f"{half}.jsonl")}

    recipe = {
        "model": {"llm": str(ASSETS / "llm"), "tower": str(ASSETS / "tower"), "dtype": "float32"},
        "lora": None,
        "objectives": {"itc": {"mode": "dual", "train": rows("train")}},
        "training": {"steps": given.steps, "batch_size": 128, "learning_rate": 3e-3},
    }
    run = lockadapt.train(recipe, output=given.output / "run", quiet=True).output
    # The classes are the captions of the test rows; both keys may also be given to `lockadapt eval`.
    templates = json.dumps(["a {}", "There is a {}."])
    overrides = [
        f"objectives.itc.test={json.dumps(rows('classes'))}",
        f"objectives.itc.templates={templates}",
    ]
    scores = lockadapt.evaluate(run, overrides=overrides, quiet=True).scores["retrieval"]["zero_shot"]
    print(json.dumps(scores))


def draw_data(folder: Path, images: int) -> None:
    """Pictures of one thing: `train.jsonl` with sentences, `classes.jsonl` with names of classes."""
    folder.mkdir(parents=True)
    draw = random.Random(0)
    for half, count, wording in (("train", images, "There is a {}."), ("classes", 80, "{}")):
        lines = []
        for number in range(count):
            colour, shape = draw.choice(list(COLOURS)), draw.choice(SHAPES)
            picture = Image.new("RGB", (96, 96), (draw.randint(225, 245),) * 3)
            x, y, size = draw.randint(8, 36), draw.randint(8, 36), draw.randint(36, 52)
            brush = ImageDraw.Draw(picture)
            fill = brush.ellipse if shape == "circle" else brush.rectangle
            fill((x, y, x + size, y + size), fill=COLOURS[colour])
            picture.save(folder / f"{half}{number}.png")
            lines.append({"image": f"{half}{number}.png", "caption": wording.format(f"{colour} {shape}")})
        (folder / f"{half}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
