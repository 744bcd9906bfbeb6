"""What a folder holds, without times: two folders that were made in different ways can be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TIMES = {
    *("seconds", "samples_per_second", "data_share", "train_runtime", "train_samples_per_second"),
    *("train_steps_per_second", "largest_batch_bytes", "command", "step_time"),
    *("eval_runtime", "eval_samples_per_second", "eval_steps_per_second"),
}
UNCOMPARED = ("manifest.json", ".png", "README.md", "report.html", "training_args.bin")
"""Digests of the others, and what is drawn or written from them."""


def contents(folder: Path) -> dict[str, Any]:
    """Every file: JSON without times, everything else as bytes. The folder's own name is left out of texts."""
    content: dict[str, Any] = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if not file.is_file() or name.endswith(UNCOMPARED):
            continue
        data = file.read_bytes().replace(str(folder).encode(), b"RUN")
        if file.suffix == ".json":
            content[name] = timeless(json.loads(data))
        elif file.suffix == ".jsonl":
            content[name] = [timeless(json.loads(line)) for line in data.splitlines()]
        else:
            content[name] = data
    return content


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return [(key, timeless(inner)) for key, inner in value.items() if key not in TIMES]
    return [timeless(inner) for inner in value] if isinstance(value, list) else value
