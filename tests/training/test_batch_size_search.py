"""The largest micro-batch is tried before the first step, halved where it does not fit, and leaves no trace."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lockadapt.architectures.assemble import Assembled
from lockadapt.building.experiment import build_experiment
from lockadapt.console import Reporter
from lockadapt.data.encode import IGNORED
from lockadapt.data.pack import packed_area
from lockadapt.errors import DoesNotFitError
from lockadapt.objectives import Vqa
from lockadapt.planning.largest_batches import largest_batches
from lockadapt.recipe.read import load_recipe
from lockadapt.training import preflight
from lockadapt.training.batch_size_search import (
    Measured,
    fit_micro_batch,
    out_of_memory,
    reason,
)
from lockadapt.training.preflight import try_largest_batch
from tests.support.rows import trainer, vqa_samples
from tests.support.runs import values


class Narrow(Vqa):
    """Runs out of memory where a batch has more rows than fit; `seen` are the rows of every batch that did fit."""

    most: int
    error: Exception
    seen: list[int]

    def loss(self, model: Any, batch: Any) -> Any:
        rows = len(batch["input_ids"])
        if rows > self.most:
            raise self.error
        if torch.is_grad_enabled():
            self.seen.append(rows)
        return super().loss(model, batch)


def narrow(most: int, error: Exception | None = None) -> Narrow:
    objective = Narrow()
    for name, value in {
        "most": most,
        "error": error or torch.cuda.OutOfMemoryError("CUDA out of memory. Tried"),
        "seen": [],
    }.items():
        object.__setattr__(objective, name, value)
    return objective


def test_the_reason_is_what_ran_out() -> None:
    message = (  # by torch 2.11 on an H100
        "CUDA out of memory. Tried to allocate 28.00 MiB. GPU 0 has a total capacity of 79.18 GiB of which 77.72 GiB "
        "is free. Including non-PyTorch memory, this process has 1.45 GiB memory in use.\nSee documentation"
    )
    short = "CUDA out of memory. Tried to allocate 28.00 MiB"
    assert reason(torch.cuda.OutOfMemoryError(message)) == short
    assert reason(MemoryError()) == "MemoryError"


@pytest.mark.parametrize("changes", [{"packing": "none"}, {"packing": "shared", "max_samples_per_image": 2}])
def test_the_largest_batches_are_those_that_the_run_draws(
    changes: dict[str, Any], assembled: Assembled, tmp_path: Path
) -> None:
    samples = [
        dataclasses.replace(
            sample,
            turns=(sample.turns[0], dataclasses.replace(sample.turns[1], text="no " * (1 + number % 5))),
        )
        for number, sample in enumerate(vqa_samples(tmp_path / "pictures", 3))
    ]
    own = trainer(assembled.folder, samples, tmp_path / "out", max_steps=5, **changes)
    assert (own.packing.max_row_tokens is not None) == ("max_samples_per_image" in changes)
    drawn = list(own.get_train_dataloader())
    assert len(drawn) == 5
    rows = own.train_dataset.rows
    chosen = largest_batches(rows, own.draws(), own.packing.max_row_tokens)
    tokens = [batch["input_ids"].numel() for batch in drawn]
    learned = [len(batch["targets"]) for batch in drawn]
    assert len(set(tokens)) > 1
    assert packed_area(chosen[0][1], own.packing.max_row_tokens) == max(tokens)
    assert max(sum(int((i.labels != IGNORED).sum()) for i in items) for _, items in chosen) == max(learned)
    # Without an order the longest rows come together, and no batch is larger.
    unordered = dataclasses.replace(own.draws(), batches=0)
    (_, longest), *_ = largest_batches(rows, unordered, own.packing.max_row_tokens)
    assert packed_area(longest, own.packing.max_row_tokens) >= max(tokens)


@pytest.mark.parametrize(
    "error",
    [
        None,
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory: you tried"
        ),
    ],
)
def test_out_of_memory_halves_the_batch_and_keeps_the_step(
    error: Exception | None, assembled: Assembled, tmp_path: Path
) -> None:
    own = trainer(
        assembled.folder, vqa_samples(tmp_path / "pictures"), tmp_path / "out", max_steps=3, check_steps=9
    )
    own.args.per_device_train_batch_size = own._train_batch_size = 6
    objective = narrow(2, error)
    own.objectives["vqa"] = objective
    own.model.eval()
    before = {name: tensor.clone() for name, tensor in own.model.state_dict().items()}
    random, notes = torch.random.get_rng_state(), []

    measured = fit_micro_batch(own, notes.append)

    assert isinstance(measured, Measured)
    assert own.rows_at_once == {"vqa": 1}
    assert len(measured.items) == 1
    assert "out of memory with 6 samples at once" in notes[0]
    assert "6 in a step as before" in notes[-1]
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(parameter.grad is None for parameter in own.model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.model.state_dict().items())
    assert not own.model.training

    objective.seen.clear()
    own.train()
    assert own.state.global_step == 3
    assert sum(objective.seen) == 3 * 6
    assert max(objective.seen) <= 2


def test_a_single_sample_that_does_not_fit(assembled: Assembled, tmp_path: Path) -> None:
    own = trainer(assembled.folder, vqa_samples(tmp_path / "pictures"), tmp_path / "out")
    own.objectives["vqa"] = narrow(0)
    with pytest.raises(DoesNotFitError, match="a single sample does not fit: CUDA out of memory"):
        fit_micro_batch(own, lambda _: None)


def test_other_errors_stay_what_they_are(assembled: Assembled, tmp_path: Path) -> None:
    own = trainer(assembled.folder, vqa_samples(tmp_path / "pictures"), tmp_path / "out")
    own.objectives["vqa"] = narrow(0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        fit_micro_batch(own, lambda _: None)
    assert not out_of_memory(ValueError("out of memory"))


class Told(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def test_a_run_says_what_was_measured_and_planned(
    assembled: Assembled, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "WORTH_PLANNING", 0)
    own = trainer(assembled.folder, vqa_samples(tmp_path / "pictures"), tmp_path / "out")
    told = Told()
    experiment = build_experiment(load_recipe(None, (), values(tiny, tmp_path)).recipe)
    try_largest_batch(own, experiment, str(assembled.folder), told)
    assert told.lines[0].startswith("largest micro-batch: 4 rows of vqa")
    difference = re.search(r"GB planned \(([+-]\d+)%\)", told.lines[0])
    assert difference is not None, told.lines
    assert abs(int(difference[1])) <= 3


def test_trying_changes_no_run(assembled: Assembled, tmp_path: Path) -> None:
    """Dropout draws random numbers, so a trace of the trial would show."""
    ends = []
    for number in range(2):
        own = trainer(assembled.folder, vqa_samples(tmp_path / "pictures"), tmp_path / f"out{number}")
        for module in own.model.modules():
            if hasattr(module, "lora_dropout"):
                module.lora_dropout["default"] = torch.nn.Dropout(0.3)
        if number:
            fit_micro_batch(own, lambda _: None)
        own.train()
        ends.append({name: tensor.clone() for name, tensor in own.model.state_dict().items()})
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
