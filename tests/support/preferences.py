"""Small recipes of stages that TRL trains: rows of preferences and of rewards about coloured pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lockadapt.recipe.read import load_recipe
from lockadapt.recipe.schema import Recipe
from tests.support.rows import COLOURS, pictures
from tests.support.runs import values

PAIRS = [(right, wrong) for right in COLOURS for wrong in COLOURS if right != wrong]


def preference_rows(folder: Path) -> dict[str, Any]:
    """A source of twelve preferences about four pictures."""
    pictures(folder / "pictures")
    lines = [
        {"image": f"{right}.png", "question": "what color is the shape?", "chosen": right, "rejected": wrong}
        for right, wrong in PAIRS
    ]
    file = folder / "preferences.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"format": "jsonl", "path": str(file), "images": str(folder / "pictures")}


def dpo_values(tiny: Path, folder: Path, tower: str = "clip-vision", **stage: Any) -> dict[str, Any]:
    """A recipe of a supervised stage and one by dpo, as plain values."""
    made = values(tiny, folder)
    rows = preference_rows(folder)
    made["model"]["tower"] = str(tiny / tower)
    made["objectives"]["preference"] = {"train": rows, "validation": rows, "test": rows}
    made["training"] |= {"steps": None, "log_every": 1, "validation_samples": 8}
    made["stages"] = [
        {"name": "first", "objectives": ["vqa"], "steps": 2},
        {"name": "reward", "method": "dpo", "objectives": ["preference"], "steps": 4, **stage},
    ]
    return made


def checked(values: dict[str, Any], *overrides: str) -> Recipe:
    """A recipe of plain values."""
    return load_recipe(None, overrides, values).recipe


def grpo_values(tiny: Path, folder: Path, **stage: Any) -> dict[str, Any]:
    """A recipe of a supervised stage and one by grpo, as plain values."""
    made = values(tiny, folder)
    rows = made["objectives"]["vqa"]
    made["objectives"] = {"vqa": {"train": rows["train"], "validation": rows["train"], "test": rows["train"]}}
    made["training"] |= {"steps": None, "log_every": 1, "validation_samples": 8, "batch_size": 8}
    own = {
        "name": "reward",
        "method": "grpo",
        "steps": 4,
        "rewards": {"vqa": {}, "format": {"pattern": ".*[a-z].*", "weight": 0.5}},
        "trl": {"num_generations": 4, "max_completion_length": 6},
        **stage,
    }
    made["stages"] = [{"name": "first", "steps": 20}, own]
    return made
