"""What the stock processor and the stock forward with labels make of samples, to hold training against."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lockadapt.architectures.base import unwrap_model
from lockadapt.data.batch import Batch, collate
from lockadapt.data.encode import Encoded, Encoder
from lockadapt.data.images import open_image
from lockadapt.features.inputs import tower_inputs
from lockadapt.features.policy import FeatureSettings, ImagePolicy
from lockadapt.models.chat_template import adds_special_tokens
from tests.support.packing import adapted_model, gradients
from tests.support.rows import dialogue_sample, padded_labels, vqa_samples

Way = Literal["plain", "packed", "cached", "checkpointed"]
WAYS: tuple[tuple[Way, str], ...] = (
    ("plain", "none"),
    ("packed", "none"),
    ("cached", "none"),
    ("checkpointed", "none"),
    ("packed", "nf4"),
    ("cached", "nf4"),
)
"""How a batch is trained, and how the blocks are quantized."""

PIXELS = 10**6


def stock_step(
    model: nn.Module, processor: Any, items: list[Encoded]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients of the stock forward: tokens and pixels by the processor, labels as they are encoded."""
    encoder = Encoder(processor, 10**6)
    texts = [encoder.render(item.sample) for item in items]
    shown = [[open_image(image, PIXELS, "test") for image in item.images] for item in items]
    made = dict(
        processor(
            text=texts,
            images=shown,
            padding=True,
            padding_side="right",
            return_tensors="pt",
            add_special_tokens=adds_special_tokens(processor.tokenizer, texts[0]),
        )
    )
    for row, item in enumerate(items):
        assert made["input_ids"][row, : len(item.input_ids)].tolist() == item.input_ids.tolist()
    model.zero_grad()
    loss = unwrap_model(model)(**made, labels=padded_labels(items)).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_parity(folder: Path, scratch: Path, way: Way, quantization: str) -> dict[str, torch.Tensor]:
    """A step of training is the stock forward's: loss to 1e-5, gradients to 1e-4 of their largest entry.

    Args:
        folder: a Transformers model.
        scratch: where the rows' pictures are drawn.
        way: how the batch is trained.
        quantization: of the LLM's blocks.

    Returns:
        The gradients.
    """
    adapted, processor = adapted_model(folder, quantization, False)
    model: Any = adapted
    items = (
        Encoder(processor, 10**6).encode([*vqa_samples(scratch, repeat=2), dialogue_sample(scratch)]).encoded
    )
    loss, expected = stock_step(model, processor, items)
    if way == "checkpointed":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    ours, actual = gradients(model, _batch(model, processor, items, way))
    torch.testing.assert_close(ours, loss, rtol=1e-5, atol=1e-5)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        tolerance = 1e-5 + 1e-4 * float(gradient.abs().max())
        torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=tolerance, msg=name)
    return actual


def _batch(model: nn.Module, processor: Any, items: list[Encoded], way: Way) -> Batch:
    images = {image.key: image for item in items for image in item.images}
    choice: Literal["memory", "none"] = "memory" if way == "cached" else "none"
    policy = ImagePolicy(FeatureSettings(choice), PIXELS)
    shown = tower_inputs(model, processor, images, policy)
    batch = collate(items, shown, 2, "vqa", 160 if way == "packed" else None)
    assert ("image_features" in batch) == (way == "cached")
    return batch
