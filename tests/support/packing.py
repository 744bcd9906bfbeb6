"""A model that is ready to train, one batch plain and packed, and what training makes of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lockadapt.data.batch import Batch, collate
from lockadapt.data.encode import Encoded, Encoder
from lockadapt.data.pixels import PixelInputs
from lockadapt.objectives.answer_tokens import answer_loss
from lockadapt.tuning.adapters import LoraSettings, attach_lora, lora_config, set_trainable
from lockadapt.tuning.quantize import load_quantized
from tests.support.rows import dialogue_sample, vqa_samples


def adapted_model(folder: Path, quantization: str, checkpointing: bool) -> tuple[nn.Module, Any]:
    """A model with LoRA that says something, ready to train."""
    model, processor = load_quantized(folder, quantization, torch.float32)
    model = attach_lora(model, lora_config(model, LoraSettings(rank=4, init="gaussian")))
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            chance = torch.Generator().manual_seed(1)
            with torch.no_grad():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=chance))
    set_trainable(model, ["projector", "lora"])
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model.train(), processor


def plain_and_packed(processor: Any, folder: Path, max_row_tokens: int) -> tuple[list[Encoded], Batch, Batch]:
    """Samples, and their batch plain and packed."""
    encoder = Encoder(processor, 200)
    items = encoder.encode([*vqa_samples(folder, repeat=2), dialogue_sample(folder)]).encoded
    pixels = PixelInputs(processor.image_processor, 10**6)
    return items, collate(items, pixels, 2, "vqa"), collate(items, pixels, 2, "vqa", max_row_tokens)


def gradients(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of a batch and the gradient of every trained parameter."""
    model.zero_grad()
    loss, _ = answer_loss(model, batch)
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
