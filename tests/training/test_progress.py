"""What a stage writes down about itself while it runs."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import TrainerControl, TrainerState, TrainingArguments

from lockadapt.console import Reporter
from lockadapt.training.progress import ProgressCallback


def test_epochs_are_passes_over_the_rows(tmp_path: Path) -> None:
    """Red before: the trainer takes the whole run for one epoch, and said 1.0 at the end of every run."""
    callback = ProgressCallback(Reporter(quiet=True), tmp_path / "metrics.jsonl", "train", 0.25)
    state, args = TrainerState(max_steps=20), TrainingArguments(str(tmp_path), report_to=[])
    for step in (1, 10, 20):
        state.global_step = step
        callback.on_log(args, state, TrainerControl(), {"loss": 1.0, "epoch": step / 20})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0.25, 2.5, 5.0]
