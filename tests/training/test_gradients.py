"""What the notes say of objectives' gradients is what autograd says of their losses."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from lockadapt.architectures.assemble import Assembled
from lockadapt.architectures.load import load_model
from lockadapt.training.gradients import GradientNotes
from lockadapt.tuning.adapters import LoraSettings, attach_lora, lora_config, set_trainable


def test_norms_and_cosine(assembled: Assembled) -> None:
    model, _ = load_model(assembled.folder, torch.float32)
    model = attach_lora(model, lora_config(model, LoraSettings(rank=2)))
    set_trainable(model, ["projector", "lora"])
    shared = [p for p in model.parameters() if p.requires_grad]
    losses = {
        "a": lambda: sum(p.sum() for p in shared),
        "b": lambda: sum((p * torch.arange(p.numel()).view_as(p)).sum() for p in shared),
    }
    expected = {}
    for name, loss in losses.items():
        expected[name] = parameters_to_vector(torch.autograd.grad(loss(), shared))
    notes = GradientNotes()
    for name, loss in losses.items():
        assert notes.wants(name)
        before = notes.snapshot(model)
        loss().backward()  # gradients of both add up in .grad, as accumulation has it
        notes.note(name, model, before)
        assert not notes.wants(name)
    logs = notes.take()
    for name, gradient in expected.items():
        assert logs[f"{name}/grad_norm"] == pytest.approx(float(gradient.norm()), rel=1e-4)
    cosine = torch.nn.functional.cosine_similarity(expected["a"], expected["b"], dim=0)
    assert logs["cosine/a-b"] == pytest.approx(float(cosine), rel=1e-4)
    assert notes.wants("a")
    assert notes.take() == {}
