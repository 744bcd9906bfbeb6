"""The quickstart's recipe: four objectives on a single model, as plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def quickstart_recipe(data: Path, assets: Path, output: Path) -> dict[str, Any]:
    """Return the recipe that the quickstart trains.

    Args:
        data: what `make_dataset` and `make_prompts` wrote.
        assets: holds `llm/`, `tower/` and `image-tokenizer/`.
        output: run folder.

    Returns:
        The recipe as plain values, for `load_recipe`.
    """

    def rows(name: str) -> dict[str, Any]:
        return {
            half: {"format": "jsonl", "path": str(data / name.format(half))} for half in ("train", "test")
        }

    return {
        "model": {
            "llm": str(assets / "llm"),
            "tower": str(assets / "tower"),
            "image_tokenizer": str(assets / "image-tokenizer"),
            "feature_layer": -1,
            "dtype": "float32",
        },
        "lora": {"rank": 16},
        "objectives": {
            "vqa": {**rows("{}.jsonl"), "sampling_weight": 6.0, "max_new_tokens": 6},
            "caption": {**rows("captions_{}.jsonl"), "sampling_weight": 1.0, "max_new_tokens": 16},
            "itc": {**rows("captions_{}.jsonl"), "sampling_weight": 0.6, "batch_size": 128, "queries": 2},
            "t2i": {
                **rows("prompts_{}.jsonl"),
                "sampling_weight": 3.0,
                "temperature": 0.8,
                "probe": str(assets / "tower"),
            },
        },
        "training": {
            "steps": 1320,
            "batch_size": 64,
            "learning_rate": 3e-3,
            "projector_learning_rate": 3e-3,
            "warmup": 0.05,
            "log_every": 20,
        },
        "output": str(output),
    }
