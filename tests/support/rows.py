"""Small sets of real-looking rows for tests: coloured squares, questions about them, and stock models to train."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lockadapt.architectures.load import load_model
from lockadapt.console import Reporter
from lockadapt.data.encode import IGNORED, Encoded
from lockadapt.data.sample import ImageRef, Sample, Turn, question_answer
from lockadapt.objectives import Vqa
from lockadapt.recipe.read import load_recipe
from lockadapt.training.config import GroundingConfig
from lockadapt.training.loop import train
from lockadapt.training.trainer import GroundingTrainer
from lockadapt.tuning.adapters import LoraSettings, lora_config

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 30), "blue": (40, 60, 220), "yellow": (230, 210, 40)}


def pictures(folder: Path) -> dict[str, Path]:
    """One PNG a colour."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in COLOURS.items():
        Image.new("RGB", (24, 20), value).save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in COLOURS}


PAIRS = [
    ("red", "a red shape"),
    ("green", "green"),
    ("blue", "a blue one"),
    ("red", "it is red"),
    ("yellow", "green"),
]
"""Red has two texts, and one text belongs to green and yellow."""


def pair_samples(folder: Path, pairs: Sequence[tuple[str, str]] = PAIRS) -> list[Sample]:
    """Images and their texts: `pairs` of a colour and what is said of it."""
    paths = pictures(folder)
    return [
        question_answer("Describe it.", text, [ImageRef(paths[c].name, path=paths[c])], f"rows:{n}")
        for n, (c, text) in enumerate(pairs)
    ]


def vqa_samples(folder: Path, repeat: int = 1) -> list[Sample]:
    """Colour questions and yes/no questions, two a picture and repetition."""
    samples = []
    for number in range(repeat):
        for name, path in pictures(folder).items():
            image = ImageRef(key=path.name, path=path)
            samples.append(question_answer("what color is the shape?", name, [image], f"rows:{len(samples)}"))
            other = "red" if number % 2 else name
            truth = "yes" if other == name else "no"
            text = f"is there a {other} shape?"
            samples.append(
                question_answer(text, truth, [image], f"rows:{len(samples)}", answer_type="yes/no")
            )
    return samples


def picture_questions(*questions: tuple[str, str], pictures: dict[str, tuple[int, int]]) -> list[Sample]:
    """Questions about the same noise pictures of the sizes given."""
    images = tuple(
        ImageRef(key, picture=Image.effect_noise(size, 90).convert("RGB")) for key, size in pictures.items()
    )
    return [question_answer(question, answer, list(images), question) for question, answer in questions]


def dialogue_sample(folder: Path) -> Sample:
    """Two turns about one picture."""
    path = pictures(folder)["red"]
    turns = (
        Turn("user", "what color is the shape?", images=1),
        Turn("assistant", "red"),
        Turn("user", "is there a circle?"),
        Turn("assistant", "no"),
    )
    return Sample((ImageRef(path.name, path=path),), turns, where="rows:0")


IMAGE_TOKEN = 1
"""What `encoded` writes for an image."""


def encoded(image: str | None, prefix: list[int], question: list[int], answer: list[int]) -> Encoded:
    """A sample made of token ids: text, one image token where there is an image, a question, and a learned answer."""
    shown = [] if image is None else [ImageRef(image)]
    ids = np.array([*prefix, *[IMAGE_TOKEN] * len(shown), *question, *answer], np.int32)
    labels = np.full(len(ids), IGNORED, np.int32)
    labels[-len(answer) :] = answer
    end = len(prefix) + 1 if shown else 0
    return Encoded(ids, labels, tuple(shown), question_answer("q", "a", shown, "rows:1"), end)


def padded_labels(items: Sequence[Encoded]) -> torch.Tensor:
    """Labels as the stock class takes them, int64 (samples, longest)."""
    labels = torch.full((len(items), max(len(item.labels) for item in items)), IGNORED)
    for row, item in enumerate(items):
        labels[row, : len(item.labels)] = torch.from_numpy(item.labels.astype("int64"))
    return labels


def trainer(
    base: Path, rows: Any, output: Path, *, lora: bool = True, validation: Any = None, **changes: Any
) -> GroundingTrainer:
    """A small trainer on the stock folder `base`; `changes` are fields of GroundingConfig."""
    model, processor = load_model(base, "float32")
    defaults = GroundingConfig(
        str(output),
        max_steps=6,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        projector_learning_rate=1e-2,
        logging_steps=1,
        use_cpu=True,
        train_parts=["projector", "lora"] if lora else ["projector"],
    )
    config = dataclasses.replace(defaults, **changes)
    peft = lora_config(model, LoraSettings(rank=4)) if lora else None
    torch.manual_seed(0)
    return GroundingTrainer(
        model,
        config,
        rows,
        validation,
        processor,
        peft,
        objectives={"vqa": Vqa()} if not isinstance(rows, dict) else None,
    )


CAPTIONS = {"red": "a red shape", "green": "it is green", "blue": "blue", "yellow": "a yellow square"}


def embedding_recipe(tiny: Path, folder: Path, llm: str) -> dict[str, Any]:
    """Questions and pairs about the four pictures in `folder / "pictures"`, mixed, as plain values."""
    names = pictures(folder / "pictures")
    sources = {}
    for kind in ("vqa", "itc"):
        lines = [
            {"image": path.name, "caption": CAPTIONS[name], "question": "what color is it?", "answer": name}
            for name, path in names.items()
        ]
        file = folder / f"{kind}.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        sources[kind] = {"format": "jsonl", "path": str(file), "images": str(folder / "pictures")}
    rows = {kind: {"train": source, "test": source} for kind, source in sources.items()}
    return {
        "model": {"llm": str(tiny / llm), "tower": str(tiny / "clip-vision"), "dtype": "float32"},
        "lora": {"rank": 4},
        "objectives": {
            "vqa": {**rows["vqa"], "answers": list(names)},
            "itc": {**rows["itc"], "dimension": 8, "queries": 2, "batch_size": 4},
        },
        "training": {
            **{"steps": 8, "batch_size": 4, "learning_rate": 1e-2},
            **{"projector_learning_rate": 1e-2, "retrieval_learning_rate": 1e-2},
        },
    }


def train_to_embed(tiny: Path, folder: Path, llm: str) -> Path:
    """The run folder of that recipe."""
    recipe = embedding_recipe(tiny, folder, llm)
    train(load_recipe(None, (), recipe).recipe, folder / "run", Reporter(quiet=True))
    return folder / "run"
