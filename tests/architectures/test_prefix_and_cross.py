"""PaliGemma's prefix and Mllama's cross-attention: what is learned is what their own processors make."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lockadapt.architectures.blocks import context_length
from lockadapt.architectures.load import load_model
from lockadapt.data.batch import Batch, collate
from lockadapt.data.encode import Encoder
from lockadapt.data.pixels import pixel_inputs
from lockadapt.data.sample import Sample, Turn
from lockadapt.errors import DataError
from lockadapt.objectives.answer_tokens import answer_loss, model_inputs
from lockadapt.planning.admission import drawn_samples
from tests.support.existing_vlm import written


def opened(name: str, folder: Path) -> tuple[torch.nn.Module, Encoder]:
    model, processor = load_model(written(name, folder / "vlm"), torch.float32)
    return model, Encoder(processor, context_length(model))


def batch_of(encoder: Encoder, samples: list[Sample]) -> Batch:
    rows = encoder.encode(samples).encoded
    return collate(rows, pixel_inputs(encoder.processor, 10**6), encoder.tokenizer.pad_token_id, "test")


@pytest.mark.parametrize("name", ["paligemma", "paligemma2"])
def test_a_row_is_what_paligemmas_processor_makes_of_prompt_and_suffix(name: str, tmp_path: Path) -> None:
    written(name, tmp_path / "vlm")
    (tmp_path / "vlm" / "chat_template.jinja").unlink()  # published checkpoints have none
    model, processor = load_model(tmp_path / "vlm", torch.float32)
    encoder = Encoder(processor, context_length(model))
    samples = drawn_samples()
    stock = processor(
        text=["<image>" + sample.turns[0].text for sample in samples],
        images=[[image.picture for image in sample.images] for sample in samples],
        suffix=[sample.answer for sample in samples],
        padding=True,
        return_tensors="pt",
    )
    batch = batch_of(encoder, samples)
    real = stock["attention_mask"].bool()
    assert torch.equal(batch["input_ids"][real], stock["input_ids"][real])
    assert torch.equal(batch["token_type_ids"][real], stock["token_type_ids"][real])
    assert len(batch["targets"]) == int(stock["token_type_ids"][real].sum())
    stock["labels"][~real] = -100
    with torch.no_grad():
        reference = model(**stock)
        ours = answer_loss(model, batch)[0]
        logits = model(**model_inputs(model, batch)).logits
    learned = stock["labels"][:, 1:] != -100
    theirs = torch.nn.functional.cross_entropy(
        reference.logits[:, :-1][learned], stock["labels"][:, 1:][learned]
    )
    assert torch.equal(logits[real], reference.logits[real])
    assert float(ours) == pytest.approx(float(theirs), abs=1e-5)


def test_a_row_of_several_answers_is_refused_where_a_prompt_is_closed_once(tmp_path: Path) -> None:
    _, encoder = opened("paligemma", tmp_path)
    first = drawn_samples()[0]
    turns = (*first.turns, Turn("user", "and now?"), Turn("assistant", "the same"))
    with pytest.raises(DataError, match="closes a prompt once"):
        encoder.encode([Sample(first.images, turns, "row 1")])


@pytest.mark.parametrize("name", ["paligemma", "mllama"])
def test_rows_without_an_image_are_refused(name: str, tmp_path: Path) -> None:
    _, encoder = opened(name, tmp_path)
    text = Sample((), (Turn("user", "what?"), Turn("assistant", "that")), "row 1")
    with pytest.raises(DataError, match="is shown an image with every text") as error:
        encoder.encode([text])
    assert error.value.where == "row 1"


def test_mllama_looks_through_the_mask_of_its_own_processor(tmp_path: Path) -> None:
    model, encoder = opened("mllama", tmp_path)
    samples = drawn_samples()
    batch = batch_of(encoder, samples)
    texts = [encoder.render(sample) for sample in samples]
    pictures = [[image.picture for image in sample.images] for sample in samples]
    stock = encoder.processor(
        text=texts, images=pictures, padding=True, add_special_tokens=False, return_tensors="pt"
    )
    assert torch.equal(batch["cross_attention_mask"], stock["cross_attention_mask"])
    real = stock["attention_mask"].bool()
    assert torch.equal(batch["input_ids"][real], stock["input_ids"][real])
    with torch.no_grad():
        logits = model(**model_inputs(model, batch)).logits
        reference = model(**stock).logits
        blind = {**batch, "cross_attention_mask": torch.zeros_like(batch["cross_attention_mask"])}
        assert torch.equal(logits[real], reference[real])
        assert not torch.allclose(logits, model(**model_inputs(model, blind)).logits)
