"""The loss on answer tokens equals the stock class's own, forward and backward, from pixels and from kept features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lockadapt.architectures.assemble import Assembled
from lockadapt.architectures.load import load_model
from lockadapt.data.batch import collate
from lockadapt.data.encode import Encoder
from lockadapt.data.pixels import PixelInputs
from lockadapt.features.in_memory import FeatureInputs
from lockadapt.features.tower import tower_outputs
from lockadapt.objectives.answer_tokens import answer_loss
from lockadapt.tuning.adapters import LoraSettings, attach_lora, lora_config, set_trainable
from tests.support.rows import dialogue_sample, padded_labels, vqa_samples


@pytest.mark.parametrize("remembered", [False, True])
def test_same_loss_and_gradients_as_the_stock_class(
    remembered: bool, assembled: Assembled, tmp_path: Path
) -> None:
    model, processor = load_model(assembled.folder, "float32")
    model = attach_lora(model, lora_config(model, LoraSettings(rank=4, init="gaussian")))
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    set_trainable(model, ["projector", "lora"])
    encoder = Encoder(processor, 200)
    items = encoder.encode([*vqa_samples(tmp_path), dialogue_sample(tmp_path)]).encoded
    pixels = PixelInputs(processor.image_processor, 10**6)
    plain = collate(items, pixels, 2, "vqa")
    images = (
        FeatureInputs(pixels, lambda v: tower_outputs(model.get_base_model(), v)) if remembered else pixels
    )
    batch = collate(items, images, 2, "vqa")
    assert ("image_features" in batch) is remembered

    loss, report = answer_loss(model, batch)
    loss.backward()
    ours = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    stock = model(
        input_ids=plain["input_ids"],
        attention_mask=plain["attention_mask"],
        pixel_values=plain["pixel_values"],
        labels=(labels := padded_labels(items)),
    ).loss
    stock.backward()
    torch.testing.assert_close(loss, stock, rtol=1e-6, atol=1e-6)
    assert float(report["tokens"]) == float((labels != -100).sum())
    theirs = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys()
    assert len(ours) > 8
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6)


def test_padding_does_not_matter(assembled: Assembled, tmp_path: Path) -> None:
    """pad, unk and eos may share an id: only the attention mask tells padding."""
    model, processor = load_model(assembled.folder, "float32")
    encoder = Encoder(processor, 200)
    items = encoder.encode(vqa_samples(tmp_path)).encoded
    pixels = PixelInputs(processor.image_processor, 10**6)
    losses = [answer_loss(model, collate(items, pixels, pad, "vqa"))[0] for pad in (0, 1, 2)]
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[0], losses[2])
