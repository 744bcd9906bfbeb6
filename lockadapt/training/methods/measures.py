"""What a stage by TRL counts: answers seen, seconds, and TRL's numbers since the last line of metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from lockadapt.training.methods.locked import LockedStage

TIMES = ("step_time",)
"""Of TRL's numbers, those that no run repeats; `samples_per_second` says the same."""
COUNTERS = ("_step", "_total_train_tokens")
"""Of TRL's trainers, which begin anew when they are made."""


class MethodMeasures:
    """Counts between two lines of metrics, and keeps what a resumed run goes on from.

    Args:
        trainer: whose numbers they are.
    """

    def __init__(self, trainer: LockedStage) -> None:
        self.trainer = trainer
        self.seen: dict[str, int] = {}
        self._began, self._before = time.perf_counter(), 0.0
        self._since, self._samples, self._step = self._began, 0, 0

    def note(self, answers: int) -> None:
        """Counts answers of a micro-batch."""
        name = self.trainer.setup.name
        self.seen[name] = self.seen.get(name, 0) + answers

    @property
    def seconds(self) -> float:
        """Since the start, over all processes that the run was resumed in; up to their last checkpoints."""
        return self._before + time.perf_counter() - self._began

    def take(self, step: int) -> dict[str, float]:
        """The numbers since the last call.

        Args:
            step: optimiser steps until now.

        Returns:
            Samples seen, and a second.
        """
        total, now = sum(self.seen.values()), time.perf_counter()
        rate = (total - self._samples) / max(now - self._since, 1e-9) if step > self._step else 0.0
        self._since, self._samples, self._step = now, total, step
        counts = {f"{name}/samples": float(count) for name, count in self.seen.items()}
        return {**counts, "samples_per_second": rate, "data_share": 0.0}

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """All that a resumed run needs to give the same numbers: tensors, and plain values for JSON."""
        metrics = self.trainer._metrics["train"]  # type: ignore[attr-defined]
        tensors = {
            f"metric.{key}": torch.tensor(values, dtype=torch.float64)
            for key, values in metrics.items()
            if values and key not in TIMES
        }
        plain = {
            "seen": dict(self.seen),
            "reports": [key.removeprefix("metric.") for key in tensors],
            "gradients": [],
            "step": self._step,
            "samples": self._samples,
            "seconds": self.seconds,
            "counters": {
                key: int(getattr(self.trainer, key)) for key in COUNTERS if hasattr(self.trainer, key)
            },
        }
        return tensors, plain

    def restore(self, tensors: Mapping[str, torch.Tensor], plain: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave."""
        self.seen.update(plain["seen"])
        metrics = self.trainer._metrics["train"]  # type: ignore[attr-defined]
        for key in plain["reports"]:
            metrics[key] = tensors[f"metric.{key}"].tolist()
        for key, value in plain["counters"].items():
            setattr(self.trainer, key, value)
        self._step, self._samples = plain["step"], plain["samples"]
        self._began = self._since = time.perf_counter()
        self._before = plain["seconds"]
