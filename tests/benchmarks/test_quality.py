"""The benchmark of quality over time: when a curve is at a loss, what is compared, and when the loss is taken."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState

pytestmark = pytest.mark.usefixtures("scripts")


def _points(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    return [{"seconds": seconds, "loss": loss} for seconds, loss in pairs]


def test_when_a_curve_is_at_a_loss() -> None:
    from quality import time_to

    curve = _points((10, 4.0), (20, 3.0), (30, 3.2), (40, 2.0))
    assert time_to(curve, 5.0) == 10
    assert time_to(curve, 3.5) == 15
    assert time_to(curve, 2.6) == 35
    assert time_to(curve, 1.9) is None


def test_what_is_compared() -> None:
    from quality import summary

    ours: dict[str, Any] = {"task": "photos", "side": "lockadapt", "seed": 0, "score": 0.2}
    theirs: dict[str, Any] = {"task": "photos", "side": "trl", "seed": 0, "score": 0.1}
    ours["curve"], theirs["curve"] = _points((10, 4.0), (30, 2.0)), _points((12, 4.5), (40, 3.0))
    assert summary([ours, theirs, {**ours, "seed": 1}]) == [
        {
            **{"task": "photos", "seed": 0, "seconds": 40, "loss": 2.0, "trl_loss": 3.0},
            **{"score": 0.2, "trl_score": 0.1, "time_ratio": 0.5},
        }
    ]


def test_the_clock_takes_losses_and_stops(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import quality

    now = iter(range(0, 1000, 10))  # every look at the time is ten seconds later
    monkeypatch.setattr(quality.time, "process_time", lambda: float(next(now)))
    monkeypatch.setattr(quality, "validation_loss", lambda model, processor, task: 1.0)
    task = quality.tasks("folder")["photos"]
    clock = quality.Clock({"task": asdict(task), "seconds": 100.0})
    given: dict[str, Any] = {"model": torch.nn.Linear(1, 1), "processing_class": None}
    control = TrainerControl()
    for step in range(1, 100):
        clock.on_step_end(None, TrainerState(global_step=step, max_steps=99), control, **given)
        if control.should_training_stop:
            break
    times = [point["seconds"] for point in clock.curve]
    assert times[0] == 10
    assert 100 <= times[-1] <= 110
    # At most one loss each eighth of the time, none of which counts.
    assert len({int(time // 12.5) for time in times}) == len(times)
    assert given["model"].training
