"""Plain text: every token behind the first is learned, and perplexity says what the adapter did to the language."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from lockadapt.architectures.assemble import Assembled
from lockadapt.architectures.load import load_model
from lockadapt.data.encode import IGNORED, Encoder
from lockadapt.data.pixels import PixelInputs
from lockadapt.data.readers.rows import row_to_samples
from lockadapt.data.readers.source import Source
from lockadapt.data.sample import Sample
from lockadapt.errors import DataError, NoLabelError
from lockadapt.evaluation.context import PredictionContext
from lockadapt.objectives import PlainText
from lockadapt.tuning.adapters import LoraSettings, attach_lora, lora_config

TEXTS = ("the shape is blue", "what is the color of this shape ? it is red", "yes")


def text(words: str) -> Sample:
    (sample,) = row_to_samples({"text": words}, Source("rows:1", "text"), "rows:1")
    return sample


def test_loss_is_that_of_the_stock_class(assembled: Assembled) -> None:
    model, processor = load_model(assembled.folder, torch.float32)
    objective, encoder = PlainText(), Encoder(processor, 64)
    items = objective.encode(encoder, [text(words) for words in TEXTS]).encoded
    assert all((item.labels[1:] == item.input_ids[1:]).all() and item.labels[0] == IGNORED for item in items)
    batch = objective.collate(items, PixelInputs(processor.image_processor, 10**6), 0, "text")
    loss, report = objective.loss(model, batch)
    losses = []
    for item in items:
        ids = torch.from_numpy(item.input_ids.astype("int64"))[None]
        logits = model(input_ids=ids).logits[0, :-1]
        losses.append(F.cross_entropy(logits, ids[0, 1:], reduction="none"))
    expected = torch.cat(losses)
    assert loss.item() == pytest.approx(expected.mean().item(), rel=1e-5)
    assert int(report["tokens"]) == len(expected)


def test_perplexity_before_and_after(assembled: Assembled) -> None:
    model, processor = load_model(assembled.folder, torch.float32)
    peft = attach_lora(model, lora_config(model, LoraSettings(rank=2)))
    encoder, objective = Encoder(processor, 64), PlainText()
    context = PredictionContext(peft, encoder, PixelInputs(processor.image_processor, 10**6), 2, None)
    samples = [text(words) for words in TEXTS]
    same, rows = objective.evaluate(context, samples)
    assert rows == []
    assert same["perplexity"] == same["perplexity_before"]
    assert same["n"] == 3
    torch.manual_seed(0)
    for name, parameter in peft.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=10.0)
    other, _ = objective.evaluate(context, samples)
    assert other["perplexity_before"] == pytest.approx(same["perplexity"], rel=1e-6)
    assert not math.isclose(other["perplexity"], same["perplexity"], rel_tol=1e-3)


def test_a_text_is_cut_at_the_limit_and_needs_two_tokens(assembled: Assembled, tmp_path: Path) -> None:
    processor = assembled.processor
    report = PlainText().encode(Encoder(processor, 4), [text(TEXTS[1])])
    assert len(report.encoded[0].input_ids) == 4
    assert report.cut == ["rows:1"]
    with pytest.raises(NoLabelError, match="no token to predict"):
        PlainText().encode(Encoder(processor, 1), [text("yes")])
    with pytest.raises(DataError):
        text("")
