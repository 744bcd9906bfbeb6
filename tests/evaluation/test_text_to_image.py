"""Evaluating text-to-image: cross-entropy of the true codes, use of the codebook, and what a probe says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from lockadapt.architectures.assemble import Assembled
from lockadapt.architectures.janus.image_tokenizer import image_codec
from lockadapt.data.encode import Encoder
from lockadapt.data.sample import ImageRef, question_answer
from lockadapt.evaluation.context import PredictionContext
from lockadapt.features.image_tokens import image_token_inputs
from lockadapt.objectives.text_to_image import TextToImage, image_token_losses
from tests.support.tiny import tiny_tower


def test_scores(drawing: Assembled, tmp_path: Path) -> None:
    model, processor = drawing.model, drawing.processor
    colours = ("red", "green", "blue", "white")
    samples = [
        question_answer(
            "Describe.",
            f"a {colour} one",
            [ImageRef(colour, picture=Image.new("RGB", (20, 20), colour))],
            colour,
        )
        for colour in colours
    ]
    images = image_token_inputs(image_codec(model.model.vqmodel), processor.image_processor, 10**6)
    context = PredictionContext(model, Encoder(processor, 64), images, 3, None, training=lambda: samples * 5)
    objective = TextToImage(probe=str(tiny_tower("mobilenet-v2", tmp_path / "tower")))
    scores, rows = objective.evaluate(context, samples)
    items = objective.encode(context.encoder, samples).encoded
    batch = objective.collate(items, images, 2, "t2i")
    with torch.no_grad():
        losses, _ = image_token_losses(
            model, batch["input_ids"], batch["attention_mask"], batch["image_token_ids"]
        )
    assert scores["cross_entropy"] == pytest.approx(float(losses.mean()), abs=1e-5)
    assert scores["uniform"] == pytest.approx(math.log(24))
    assert 1 <= scores["codebook_perplexity"] <= 24
    assert scores["n"] == 4
    assert scores["probe"]["probe_accuracy_on_real"] == 1.0
    # An image tokenizer that was never trained paints all four colours alike.
    assert scores["probe"]["probe_accuracy_on_tokenized"] < 1
    assert 0 <= scores["probe"]["accuracy"] < 1
    assert [len(row["answer"].split()) for row in rows] == [16] * 4
    again, _ = TextToImage().evaluate(context, samples)
    assert "probe" not in again
    assert again["codebook_perplexity"] == scores["codebook_perplexity"]
