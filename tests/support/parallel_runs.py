"""Recipes for runs on several processes, and what such runs leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from lockadapt.training.progress import read_metrics
from tests.support.rows import embedding_recipe
from tests.support.tiny import tiny_image_tokenizer, tiny_tower


def losses(folder: Path) -> list[float]:
    """Of all steps."""
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]


def weights(folder: Path, checkpoint: str = "finished") -> dict[str, torch.Tensor]:
    """What a run trained, at its end or at a checkpoint."""
    return load_file(folder / "checkpoints" / "train" / checkpoint / "trainable.safetensors")


def recipe(folder: Path, name: str, given: dict[str, Any], **training: Any) -> str:
    """Writes a recipe that logs every step; gives the file."""
    given = {**given, "training": {**given["training"], "log_every": 1, "schedule": "constant", **training}}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(given))
    return str(file)


def mixed(tiny: Path, folder: Path, rows: int, chunk: int) -> dict[str, Any]:
    """Questions, pairs and generated images in one Janus."""
    given = embedding_recipe(tiny, folder, "llama-tied")
    tiny_tower("siglip-vision", folder / "siglip")
    tiny_image_tokenizer(folder / "image-tokenizer")
    given["model"] |= {"tower": str(folder / "siglip"), "image_tokenizer": str(folder / "image-tokenizer")}
    given["objectives"]["itc"] |= {"batch_size": rows, "chunk": chunk}
    source = given["objectives"]["itc"]["train"]
    given["objectives"]["t2i"] = {
        "train": source,
        "batch_size": rows,
        "image_token_noise": 0.2,
        "prompt_drop": 0.3,
    }
    given["training"] |= {"generation_learning_rate": 1e-2, "batch_size": rows}
    return given
