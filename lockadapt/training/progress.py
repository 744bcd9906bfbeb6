"""Shows a run while it goes: a live line on a terminal, plain lines elsewhere; always `metrics.jsonl`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lockadapt.console import PLAIN_SECONDS, Reporter
from lockadapt.errors import VerificationError
from lockadapt.files import write_text


class ProgressCallback(TrainerCallback):
    """Loss, rates, samples a second, time left and data share of one stage.

    Args:
        reporter: where lines go.
        metrics: the `metrics.jsonl` that every log is appended to.
        stage: its name.
        epochs_per_step: share of the training rows that an optimiser step sees. The trainer itself takes the
            whole run for one epoch.
    """

    def __init__(
        self, reporter: Reporter, metrics: Path, stage: str, epochs_per_step: float | None = None
    ) -> None:
        self.reporter, self.metrics, self.stage = reporter, metrics, stage
        self.epochs_per_step = epochs_per_step
        self._bar: Progress | None = None
        self._task: Any = None
        self._started = self._printed = time.monotonic()
        self._first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Opens the live line."""
        self._started, self._first_step = time.monotonic(), state.global_step
        if self.reporter.live and state.is_world_process_zero:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[line]}"),
                console=self.reporter.console,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                self.stage, total=state.max_steps, completed=state.global_step, line=""
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Appends to the metrics file and shows the line."""
        if not logs or not state.is_world_process_zero:
            return
        if "epoch" in logs and self.epochs_per_step is not None:
            logs["epoch"] = round(state.global_step * self.epochs_per_step, 4)
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": self.stage, "step": state.global_step, **logs}) + "\n")
        if "train_runtime" in logs:
            return
        line = self._line(logs, state)
        if self._bar is not None:
            self._bar.update(self._task, line=line)
            if "eval_loss" in logs or "eval_reward" in logs:
                self.reporter.note(f"{self.stage} step {state.global_step}: {line}")
        elif (
            "eval_loss" in logs or "eval_reward" in logs or time.monotonic() - self._printed >= PLAIN_SECONDS
        ):
            self._printed = time.monotonic()
            self.reporter.note(f"{self.stage} step {state.global_step}/{state.max_steps}  {line}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Closes the live line."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _line(self, logs: dict[str, Any], state: TrainerState) -> str:
        if "eval_loss" in logs or "eval_reward" in logs:
            return "validation " + "  ".join(
                f"{key.removeprefix('eval_')} {value:.4f}"
                for key, value in logs.items()
                if key.startswith("eval_")
            )
        done = state.global_step - self._first_step
        left = (time.monotonic() - self._started) / max(done, 1) * (state.max_steps - state.global_step)
        parts = [f"loss {logs.get('loss', float('nan')):.4f}"]
        parts += [f"{k.removesuffix('/loss')} {v:.4f}" for k, v in logs.items() if k.endswith("/loss")]
        parts += [
            f"{k} {logs[k]:.4f}" for k in ("reward", "rewards/margins", "kl") if logs.get(k) is not None
        ]
        if "learning_rate" in logs:
            parts.append(f"lr {logs['learning_rate']:.1e}")
        if "projector_learning_rate" in logs:
            parts.append(f"projector {logs['projector_learning_rate']:.1e}")
        if "samples_per_second" in logs:
            parts.append(f"{logs['samples_per_second']:.0f} samples/s")
            parts.append(f"data {logs['data_share']:.0%}")
        parts.append(f"left {_clock(left)}")
        return "  ".join(parts)


def forget_after(metrics: Path, stage: str, last: Path | None) -> None:
    """Drops the metric lines of steps that are taken again: after checkpoint `last`, or a whole stage's."""
    if not metrics.is_file():
        return
    step = int(last.name.removeprefix("checkpoint-")) if last else 0
    lines = read_metrics(metrics)
    # What sums up a stage is written again as well, even where its last checkpoint is of its last step.
    kept = [
        line
        for line in lines
        if line["stage"] != stage or (line["step"] <= step and "train_runtime" not in line)
    ]
    write_text(metrics, "".join(json.dumps(line) + "\n" for line in kept))


def read_metrics(metrics: Path) -> list[dict[str, Any]]:
    """Reads the lines of `metrics.jsonl`; a last one that a killed process did not finish is left out.

    Args:
        metrics: the file.

    Returns:
        A mapping a line.

    Raises:
        VerificationError: another line is none that training writes.
    """
    texts = [text for text in metrics.read_bytes().splitlines() if text.strip()]
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            line["stage"], line["step"] + 0
        except (ValueError, TypeError, KeyError) as error:
            if number == len(texts):
                break
            raise VerificationError(
                "is no line of metrics", where=f"{metrics}:{number}", fix="remove the line"
            ) from error
        lines.append(line)
    return lines


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
