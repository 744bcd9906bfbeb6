"""Small recipes, as text, as values, as a file and checked; and their rows, which many tests train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from lockadapt.recipe.read import load_recipe
from lockadapt.recipe.schema import Recipe
from lockadapt.runs.record import RunRecord, StageRecord
from lockadapt.tuning.locks import ComponentRow
from tests.support.rows import pictures

RECIPE_TEXT = """\
model: {llm: a, tower: b}
lora:
  rank: 8
objectives:
  vqa:
    train:
      format: jsonl
      path: rows.jsonl
training:
  steps: 100
stages:
  - name: align
    train: [projector]
  - name: instruct
    steps: 7
"""


def rows_file(folder: Path) -> Path:
    """JSON lines about four coloured pictures."""
    lines = []
    for name, path in pictures(folder / "pictures").items():
        lines.append({"image": path.name, "question": "what color is the shape?", "answer": name})
        lines.append(
            {
                "image": path.name,
                "question": "is there a red shape?",
                "answer": "yes" if name == "red" else "no",
            }
        )
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def values(tiny: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """A small recipe as plain values."""
    rows = {"format": "jsonl", "path": str(rows_file(folder)), "images": str(folder / "pictures")}
    return {
        "model": {"llm": str(tiny / "llama"), "tower": str(tiny / "clip-vision"), "dtype": "float32"},
        "lora": {"rank": 4},
        "objectives": {
            "vqa": {"train": rows, "test": rows, "answers": ["red", "green", "blue", "yellow", "yes", "no"]}
        },
        "training": {"steps": 5, "batch_size": 4, "learning_rate": 1e-2, "projector_learning_rate": 1e-2},
        **changes,
    }


def recipe_file(folder: Path, recipe: dict[str, Any]) -> Path:
    """Writes a recipe to `recipe.yaml`."""
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def recipe(folder: Path, *overrides: str) -> Recipe:
    """A checked recipe, with all defaults but its data and 40 steps."""
    rows = {"format": "jsonl", "path": str(rows_file(folder)), "images": str(folder / "pictures")}
    values = {
        "model": {"llm": "./llm", "tower": "./tower"},
        "objectives": {"vqa": {"train": rows, "validation": rows, "test": rows}},
        "training": {"steps": 40},
    }
    return load_recipe(None, overrides, values).recipe


def record(**changes: Any) -> RunRecord:
    """What a small run of one stage records, nothing of which needs to be on disk."""
    stage = StageRecord(
        name="train",
        steps=1,
        samples=4,
        samples_by_objective={"vqa": 4},
        train_loss=1.0,
        best_validation_loss=None,
        loss_change_by_swapped_images={"vqa": 0.5},
        largest_batch_bytes=100,
        components=changes.pop("components", (component("tower", "frozen"), component("projector"))),
        packing=None,
        locked=1,
    )
    given: dict[str, Any] = {
        **{"command": "lockadapt train", "versions": {"lockadapt": "0", "device": "cpu"}, "seed": 0},
        **{"base": "nowhere", "llm": "org/llm", "tower": "org/tower", "dtype": "float32"},
        **{"quantization": "none", "blind": False, "sources": (), "stages": (stage,)},
        **{
            "base_fingerprint": "0" * 64,
            "steps": 1,
            "seconds": 1.0,
            "samples_per_second": 1.0,
            "locked": True,
        },
    }
    return RunRecord(**{**given, **changes})


def component(name: str, state: str = "trained") -> ComponentRow:
    """A line of a component table."""
    return ComponentRow(name, 1, "float32", state, 0)
