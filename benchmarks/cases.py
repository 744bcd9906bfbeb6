"""What is measured: the cases, and the rows and pictures that they are made of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal, TypedDict

from PIL import Image, ImageDraw

SIZES = tuple((width, height) for width in (640, 480, 400, 560) for height in (480, 640, 360, 520))
"""Widths and heights of pictures in pixels: the i-th image of a batch has the i-th of these 16."""
COLOURS = ("red", "green", "blue", "yellow", "black", "white", "purple", "orange")
THINGS = ("circle", "square", "door", "valve", "lamp", "bottle", "wheel", "sign", "window", "table")
PLACES = ("on the left", "on the right", "in the middle", "near the edge", "at the top", "at the bottom")


class Row(TypedDict):
    """One sample: a question or an instruction, what to answer, and the path of the image."""

    question: str
    answer: str
    image: str


@dataclass(frozen=True)
class Case:
    """One case: a batch has `images` distinct images and `samples` of each (of easy-VQA, whatever comes).

    `steps` are timed in each round. The small mode has `small_images` and `small_steps`. `rows` are the
    samples' kind, `model` what is trained.
    """

    name: str
    images: int
    samples: int
    small_images: int
    rows: Literal["questions", "captions", "easy-vqa"] = "questions"
    steps: int = 3
    small_steps: int = 1
    model: Literal["assembled", "idefics3"] = "assembled"


CASES = {
    case.name: case
    for case in (
        Case("vqa-5", images=2, samples=5, small_images=1),
        Case("vqa-10", images=2, samples=10, small_images=1),
        Case("caption-1", images=8, samples=1, small_images=4, rows="captions"),
        Case("caption-5", images=2, samples=5, small_images=1, rows="captions"),
        Case("easy-vqa", images=64, samples=1, small_images=64, rows="easy-vqa", steps=20, small_steps=3),
        Case("vlm-5", images=2, samples=5, small_images=1, model="idefics3"),
        Case("images-1", images=1, samples=16, small_images=1),
        Case("images-4", images=4, samples=4, small_images=4),
        Case("images-16", images=16, samples=1, small_images=16),
    )
}
"""By name. `vlm-5` starts from an existing model of Idefics3's class, whose images are cut into tiles. The
last three hold 16 samples a batch about 1, 4 and 16 images, each image of another size."""


def sentences(count: int = 4000) -> list[str]:
    """Texts of the kind that the cases hold, to train a tokenizer on."""
    random = Random(0)
    return [text for _ in range(count) for text in (*_question(random), _caption(random))]


def drawn_rows(case: Case, images: int, batches: int, folder: Path) -> list[Row]:
    """Return rows about random JPEG pictures drawn into `folder`: `batches` batches of `images` images."""
    random = Random(f"{case.name} {images}")
    folder.mkdir(parents=True)
    rows: list[Row] = []
    for number in range(batches * images):
        path = folder / f"{number:05d}.jpg"
        _picture(random, SIZES[number % images % len(SIZES)]).save(path, quality=90)
        for _ in range(case.samples):
            if case.rows == "captions":
                question, answer = "Describe the picture.", _caption(random)
            else:
                question, answer = _question(random)
            rows.append({"question": question, "answer": answer, "image": str(path)})
    return rows


def easy_vqa_rows(real: Path, count: int) -> list[Row]:
    """The first `count` training questions of easy-VQA, in the order of the file.

    Raises:
        FileNotFoundError: the data is not below `real`.
    """
    folder = real / "data" / "easy-vqa" / "train"
    questions = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    return [
        {"question": question, "answer": answer, "image": str(folder / "images" / f"{image}.png")}
        for question, answer, image in questions[:count]
    ]


def _question(random: Random) -> tuple[str, str]:
    colour, thing, location = random.choice(COLOURS), random.choice(THINGS), random.choice(PLACES)
    return random.choice(
        (
            (f"What color is the {thing} {location}?", colour),
            (f"Is there a {colour} {thing} {location} of the picture?", random.choice(("yes", "no"))),
            (f"How many {colour} things are there {location}?", str(random.randrange(10))),
            (f"What stands {location} beside the {colour} {thing}?", f"a {thing}"),
        )
    )


def _caption(random: Random) -> str:
    first, second = random.sample(THINGS, 2)
    return (
        f"a {random.choice(COLOURS)} {first} {random.choice(PLACES)} and "
        f"a {random.choice(COLOURS)} {second} {random.choice(PLACES)}"
    )


def _picture(random: Random, size: tuple[int, int]) -> Image.Image:
    picture = Image.new("RGB", size, random.choice(COLOURS))
    brush = ImageDraw.Draw(picture)
    for _ in range(40):
        x, y = random.randrange(size[0]), random.randrange(size[1])
        box = (x, y, x + random.randrange(8, 200), y + random.randrange(8, 200))
        fill = (random.randrange(256), random.randrange(256), random.randrange(256))
        random.choice((brush.rectangle, brush.ellipse))(box, fill=fill)
    return picture
