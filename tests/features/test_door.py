"""Features that were computed earlier give what pixels give: in the forward pass, in generation, under LoRA."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from lockadapt.architectures.assemble import Assembled
from lockadapt.architectures.features import image_arguments, projector_input
from lockadapt.architectures.load import load_model


def _batch(assembled: Assembled) -> dict[str, Tensor]:
    facts = assembled.report.tower_facts
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(3, 280, (2, 7), generator=generator)
    images = torch.full((2, facts.tokens), assembled.model.config.image_token_id)
    ids = torch.cat([text[:, :1], images, text[:, 1:]], dim=1)
    pixels = torch.randn(2, 3, facts.image_size, facts.image_size, generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


@torch.no_grad()
def test_forward_is_the_same(assembled: Assembled) -> None:
    batch, model = _batch(assembled), assembled.model
    expected = model(**batch).logits
    features = projector_input(model, batch.pop("pixel_values"))
    assert not features.requires_grad
    actual = model(**batch, **image_arguments(model, features)).logits
    torch.testing.assert_close(actual, expected)
    swapped = model(**batch, **image_arguments(model, features.flip(0))).logits
    assert not torch.allclose(swapped, expected)


@torch.no_grad()
def test_generation_is_the_same(assembled: Assembled) -> None:
    batch, model = _batch(assembled), assembled.model
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    expected = model.generate(**batch, **settings)
    outputs = image_arguments(model, projector_input(model, batch.pop("pixel_values")))
    actual = model.generate(**batch, **outputs, **settings)
    assert actual.shape[1] == batch["input_ids"].shape[1] + 6
    assert torch.equal(actual, expected)


def test_gradient_reaches_projector_and_lora(assembled: Assembled) -> None:
    model, _ = load_model(assembled.folder or "", "float32")
    targets = r"model\.language_model.*\.(q_proj|v_proj)"
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=targets))
    batch = _batch(assembled)
    pixels = batch.pop("pixel_values")
    features = projector_input(wrapped, pixels)
    assert torch.equal(features, projector_input(assembled.model, pixels))
    for parameter in model.model.multi_modal_projector.parameters():
        parameter.requires_grad_(True)
    wrapped(**batch, **image_arguments(wrapped, features)).logits.square().sum().backward()
    moved = [name for name, p in wrapped.named_parameters() if p.grad is not None and bool(p.grad.any())]
    assert any("multi_modal_projector.linear_1.weight" in name for name in moved)
    assert any("lora_B" in name for name in moved)
    assert not any("vision_tower" in name for name in moved)


def test_hook_is_removed_even_after_a_failure(assembled: Assembled) -> None:
    projector = assembled.model.model.multi_modal_projector
    with pytest.raises((RuntimeError, ValueError)):
        projector_input(assembled.model, torch.zeros(1, 1, 3, 3))
    assert not projector._forward_pre_hooks
