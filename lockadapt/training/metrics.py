"""What a line of metrics says beside the loss: each objective's own numbers, its gradient, speed, waiting."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from lockadapt.processes import add_up
from lockadapt.training.gradients import GradientNotes
from lockadapt.training.shares import WHOLE, Share


class TrainingMetrics:
    """Collects between two lines of metrics.

    Attributes:
        seen: samples by objective since the start, over all processes.
        gradients: how objectives pull on what they share.
    """

    def __init__(self) -> None:
        self.seen: dict[str, int] = defaultdict(int)
        self.gradients = GradientNotes()
        self._reports: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._own: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._in_step: set[str] = set()
        self._waited, self._since = 0.0, time.perf_counter()
        self._step = self._samples = 0
        self._started, self._before = self._since, 0.0

    def begin_step(self) -> None:
        """What is noted from now on belongs to another optimiser step."""
        self._in_step.clear()

    def note(
        self, objective: str, samples: int, report: Mapping[str, torch.Tensor], share: Share = WHOLE
    ) -> None:
        """Counts a batch and keeps what its loss reported, as one number a step: the mean over its terms.

        Args:
            objective: its name.
            samples: in the batch, and those of the other processes in theirs.
            report: detached scalars; `tokens` are averaged over the step's micro-batches.
            share: of the batch in its step.
        """
        self.seen[objective] += samples
        for name, value in report.items():
            key, part = f"{objective}/{name}", value * (share.each if name == "tokens" else share.mean)
            if key in self._in_step:
                self._own[key][-1] = self._own[key][-1] + part
            else:
                self._own[key].append(part)
                self._in_step.add(key)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within the block training waits for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @property
    def seconds(self) -> float:
        """Since the start, over all processes that the run was resumed in; up to their last checkpoints."""
        return self._before + time.perf_counter() - self._started

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """All that a resumed run needs to give the same numbers: tensors, and plain values for JSON.

        All processes must call.
        """
        self._add_up()
        tensors, counts = self.gradients.state()
        reports = {f"report.{key}": torch.stack(values).cpu() for key, values in self._reports.items()}
        plain = {
            "seen": dict(self.seen),
            "reports": list(self._reports),
            "gradients": counts,
            "step": self._step,
            "samples": self._samples,
            "seconds": self.seconds,
        }
        return {**tensors, **reports}, plain

    def restore(self, tensors: Mapping[str, torch.Tensor], plain: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave."""
        self.seen.update(plain["seen"])
        for key in plain["reports"]:
            self._reports[key] = list(tensors[f"report.{key}"].unbind())
        self.gradients.restore(tensors, plain["gradients"])
        self._step, self._samples = plain["step"], plain["samples"]
        self._waited, self._since = 0.0, time.perf_counter()
        self._started, self._before = self._since, plain["seconds"]

    def _add_up(self) -> None:
        """The parts of steps that the processes noted become the steps' numbers."""
        for key, values in self._own.items():
            self._reports[key] += add_up(torch.stack(values)).unbind()
        self._own.clear()

    def take(self, step: int) -> dict[str, float]:
        """The numbers since the last call, over all processes, which must all call.

        Args:
            step: optimiser steps until now.

        Returns:
            Means of reports over steps, gradients, samples a second, and the share of the time that this
            process spent waiting for data.
        """
        self._add_up()
        logs = {key: float(torch.stack(values).float().mean()) for key, values in self._reports.items()}
        logs.update(self.gradients.take())
        logs.update({f"{name}/samples": float(count) for name, count in self.seen.items()})
        elapsed = max(time.perf_counter() - self._since, 1e-9)
        total = sum(self.seen.values())
        logs["samples_per_second"] = (total - self._samples) / elapsed if step > self._step else 0.0
        logs["data_share"] = self._waited / elapsed
        self._reports.clear()
        self._waited, self._since, self._step, self._samples = 0.0, time.perf_counter(), step, total
        return logs
