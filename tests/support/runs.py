"""A small recipe and its rows, which many tests train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.rows import pictures


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
