"""The quickstart's recipe, and the picture at its end: unseen images with question, answer and truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

COLUMNS = 4
RIGHT, WRONG = "#1a7f37", "#cf222e"


def quickstart_recipe(data: Path, assets: Path, output: Path) -> dict[str, Any]:
    """The recipe that the quickstart trains, as plain values.

    Args:
        data: what `make_dataset` wrote.
        assets: holds `llm/` and `tower/`.
        output: run folder.
    """
    return {
        "model": {
            "llm": str(assets / "llm"),
            "tower": str(assets / "tower"),
            "feature_layer": -1,
            "dtype": "float32",
        },
        "lora": {"rank": 16},
        "objectives": {
            "vqa": {
                "train": {"format": "jsonl", "path": str(data / "train.jsonl")},
                "test": {"format": "jsonl", "path": str(data / "test.jsonl")},
                "ratio": 6.0,
                "max_new_tokens": 6,
            },
            "caption": {
                "train": {"format": "jsonl", "path": str(data / "captions_train.jsonl")},
                "test": {"format": "jsonl", "path": str(data / "captions_test.jsonl")},
                "ratio": 1.0,
                "max_new_tokens": 16,
            },
        },
        "training": {
            "steps": 960,
            "batch_size": 64,
            "learning_rate": 3e-3,
            "projector_learning_rate": 3e-3,
            "warmup": 0.05,
            "log_every": 20,
        },
        "output": str(output),
    }


def contact_sheet(items: Sequence[tuple[Image.Image, str, str, str]], path: Path, title: str) -> None:
    """Writes a PNG with each image above its question, the model's answer (green if right, else red) and the truth.

    Args:
        items: (picture, question, answer, truth).
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = -(-len(items) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(2.6 * COLUMNS, 3.25 * rows + 0.5), squeeze=False)
    figure.suptitle(title, fontsize=14)
    for cell in axes.flat:
        cell.axis("off")
    for cell, (picture, question, answer, truth) in zip(axes.flat, items, strict=False):
        right = answer.casefold() == truth.casefold()
        cell.imshow(picture, interpolation="nearest")
        cell.text(0.5, -0.06, question, transform=cell.transAxes, ha="center", va="top", fontsize=9.5)
        verdict = answer or "(no answer)"
        if not right:
            verdict += f"   (truth: {truth})"
        cell.text(
            0.5, -0.19, verdict, transform=cell.transAxes, ha="center", va="top", fontsize=11,
            fontweight="bold", color=RIGHT if right else WRONG,
        )  # fmt: skip
    figure.subplots_adjust(
        left=0.02, right=0.98, top=1 - 0.6 / (3.25 * rows), bottom=0.07, hspace=0.42, wspace=0.12
    )
    figure.savefig(path, dpi=110, facecolor="white")
    plt.close(figure)
