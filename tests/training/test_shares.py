"""A step's loss is the mean over its tokens, however the step is divided: accumulation, halves, random numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import TrainerCallback

from lockadapt.architectures.assemble import Assembled, assemble
from lockadapt.data.encode import Encoder
from lockadapt.data.sample import Sample
from lockadapt.errors import DoesNotFitError
from lockadapt.objectives import Caption, ImageText, Vqa
from lockadapt.training.batch_size_search import fit_micro_batch
from lockadapt.training.shares import give_shares, step_terms
from lockadapt.training.trainer import GroundingTrainer
from tests.support.rows import padded_labels, trainer, vqa_samples


@pytest.fixture(scope="module")
def llava(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Assembled:
    folder = tmp_path_factory.mktemp("shares") / "model"
    return assemble(tiny / "llama-tied", tiny / "clip-vision", folder, dtype="float32", prove=False)


class Gradients(TrainerCallback):
    """Keeps the first step's gradients."""

    def __init__(self) -> None:
        self.first: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.first:
            named = kwargs["model"].named_parameters()
            self.first = {name: p.grad.clone() for name, p in named if p.grad is not None}


def uneven(folder: Path) -> list[Sample]:
    """Eight samples whose answers have one to eight words."""
    return [
        dataclasses.replace(
            sample, turns=(sample.turns[0], dataclasses.replace(sample.turns[1], text="no " * (number + 1)))
        )
        for number, sample in enumerate(vqa_samples(folder))
    ]


def one_step(
    llava: Assembled, rows: list[Sample], folder: Path, size: int, accumulation: int, halves: int, **more: Any
) -> tuple[GroundingTrainer, dict[str, torch.Tensor], dict[str, float]]:
    run = trainer(
        llava.folder,
        rows,
        folder,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        max_grad_norm=0.0,
        **more,
    )
    if halves > 1:
        run.rows_at_once["vqa"] = size // halves
    gradients = Gradients()
    run.add_callback(gradients)
    run.train()
    return run, gradients.first, next(entry for entry in run.state.log_history if "vqa/loss" in entry)


DIVISIONS = [(4, 2, 1, "none"), (2, 4, 1, "none"), (8, 1, 2, "none"), (8, 1, 3, "shared"), (4, 2, 2, "none")]
"""Rows of a micro-batch, micro-batches of a step, pieces of a micro-batch, packing."""


def test_a_divided_step_is_the_whole_step(llava: Assembled, tmp_path: Path) -> None:
    rows = uneven(tmp_path)
    whole, wanted, expected = one_step(llava, rows, tmp_path / "run", 8, 1, 1, packing="none")
    for size, accumulation, halves, packing in DIVISIONS:
        _, gradients, logged = one_step(
            llava, rows, tmp_path / "run", size, accumulation, halves, packing=packing
        )
        for name in ("loss", "vqa/loss", "vqa/token_accuracy"):
            assert logged[name] == pytest.approx(expected[name], abs=1e-6)
        assert logged["vqa/samples"] == expected["vqa/samples"] == 8
        assert logged["vqa/tokens"] * accumulation == expected["vqa/tokens"]
        assert gradients.keys() == wanted.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, wanted[name], rtol=0, atol=1e-6)

    # What the stock class itself makes of all eight rows before the step.
    start = trainer(llava.folder, rows, tmp_path / "run", max_steps=1, features="none")
    items = start.train_dataset.rows["vqa"]
    batch = start.collate("vqa", items, None)
    logits = start.model(**{n: batch[n] for n in ("input_ids", "attention_mask", "pixel_values")}).logits
    labels = padded_labels(items)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    loss = loss / (labels[:, 1:] >= 0).sum()
    assert expected["vqa/loss"] == pytest.approx(loss.item(), abs=1e-6)
    loss.backward()
    for name, parameter in start.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=0, atol=1e-6)
    assert len(wanted) == sum(p.requires_grad for p in whole.model.parameters())


def test_objectives_are_weighed_by_their_micro_batches() -> None:
    objectives = {"vqa": Vqa(), "caption": Caption()}
    batches = [
        {"objective": name, "targets": torch.zeros(count)}
        for name, count in (("vqa", 3), ("caption", 7), ("vqa", 9), ("vqa", 0))
    ]
    give_shares(batches, objectives, step_terms(batches, objectives))
    shares: list[Any] = [batch["share"] for batch in batches]
    assert [share.loss for share in shares] == [0.75 * 0.25, 0.25, 0.75 * 0.75, 0.0]
    assert [share.each for share in shares] == pytest.approx([1 / 3, 1, 1 / 3, 1 / 3])


def test_a_contrastive_batch_is_never_divided(llava: Assembled, tmp_path: Path) -> None:
    own = trainer(llava.folder, vqa_samples(tmp_path / "pictures"), tmp_path / "out", max_steps=3)
    whole, at_once = ImageText(chunk=8), []

    class Small(ImageText):
        def collate(self, *given: Any) -> Any:
            return Vqa().collate(*given)

        def loss(self, model: Any, batch: Any) -> Any:
            at_once.append(self.chunk)
            if self.chunk not in (1, 2):
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried")
            return Vqa().loss(model, batch)

    own.objectives["vqa"] = Small(chunk=8)
    expected: list[str] = []
    fit_micro_batch(own, expected.append)
    assert at_once[:3] == [8, 4, 2]
    assert own.rows_at_once == {}
    assert own.objectives["vqa"].chunk == 2
    assert all("smaller chunks" in line for line in expected)
    assert whole.in_smaller_chunks() == ImageText(chunk=4)

    own.objectives["vqa"] = Small(chunk=0)
    with pytest.raises(DoesNotFitError):
        fit_micro_batch(own, expected.append)


def test_terms_are_what_a_loss_reports(llava: Assembled, tmp_path: Path) -> None:
    encoder, objective = Encoder(llava.processor, 128), Vqa()
    run = trainer(llava.folder, vqa_samples(tmp_path), tmp_path / "run")
    items = objective.encode(encoder, vqa_samples(tmp_path)).encoded
    batch = run.collate("vqa", items, None)
    assert float(objective.loss(run.model, batch)[1]["tokens"]) == objective.terms(batch)
    assert objective.terms({"objective": "other"}) == 1
