"""BLIP-2 around T5: the encoder reads prompts and images, the decoder writes answers; held against the stock class."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lockadapt.architectures import answers_apart, layout_of
from lockadapt.architectures.assemble import Assembled, assemble
from lockadapt.architectures.blocks import attention_linears, block_linears
from lockadapt.architectures.blueprint import assembled_blueprint
from lockadapt.architectures.features import projector_input
from lockadapt.console import Reporter
from lockadapt.data.batch import Batch, collate
from lockadapt.data.encode import IGNORED, Encoder
from lockadapt.data.pixels import PixelInputs
from lockadapt.data.sample import Turn
from lockadapt.errors import AssemblyError, RecipeError
from lockadapt.evaluation.predict import SamplePredictor
from lockadapt.exports.export import export_run
from lockadapt.exports.merge import merge_run
from lockadapt.exports.verify import verify_folder
from lockadapt.objectives import Vqa
from lockadapt.objectives.answer_tokens import model_inputs
from lockadapt.objectives.text import PlainText
from lockadapt.planning.packing import why_not_exact
from lockadapt.planning.trace import MicroBatch, traced
from lockadapt.recipe.read import load_recipe
from lockadapt.training.loop import train
from lockadapt.tuning.adapters import LoraSettings
from lockadapt.tuning.quantize import is_quantized, load_quantized
from tests.support.packing import adapted_model, gradients
from tests.support.rows import vqa_samples
from tests.support.runs import values
from tests.support.tiny import tiny_llm, tiny_tower

COLOURS = [Image.new("RGB", (8, 8), colour) for colour in ("red", "white", "blue", "green")]
QUERIES = 3


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    tiny_tower("vit", folder / "vit")
    tiny_llm("t5", folder / "t5")
    tiny_llm("flan-t5", folder / "flan-t5")
    return folder


@pytest.fixture(scope="module")
def made(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Assembled:
    return built(sources, "t5", tmp_path_factory.mktemp("blip2") / "base")


def built(sources: Path, llm: str, output: Path | None) -> Assembled:
    return assemble(
        sources / llm,
        sources / "vit",
        output,
        fusion_name="qformer",
        queries=QUERIES,
        dtype="float32",
        calibration_images=COLOURS,
        prove=output is not None,
    )


def encoder_of(processor: Any, length: int = 200) -> Encoder:
    return Encoder(processor, length, apart=True)


def batch_of(processor: Any, folder: Path) -> Batch:
    items = encoder_of(processor).encode(vqa_samples(folder)).encoded
    images, pad = PixelInputs(processor.image_processor, 10**6), processor.tokenizer.pad_token_id
    return collate(items, images, pad, "vqa")


def test_it_is_proved_in_a_fresh_process(made: Assembled) -> None:
    assert made.report.proof.fresh_process
    assert made.report.proof.logit_difference == 0.0
    assert answers_apart(made.model)
    layout = layout_of(made.model)
    assert (layout.llm, layout.head) == ("language_model", "language_model.lm_head")
    assert layout.blocks == ("language_model.encoder.block", "language_model.decoder.block")


def test_a_head_of_its_own_is_held(sources: Path) -> None:
    """Reloading is proved as always: logits are the source's, whose head is not its embedding."""
    llm = built(sources, "flan-t5", None).model.language_model
    assert not torch.equal(llm.lm_head.weight, llm.shared.weight)


def test_adapters_reach_encoder_and_decoder(made: Assembled) -> None:
    linears = block_linears(made.model)
    assert {name.split(".")[1] for name in linears} == {"encoder", "decoder"}
    assert {name.split(".")[-1] for name in linears} == {"q", "k", "v", "o", "wi", "wo"}
    attention = attention_linears(made.model)
    assert {name.split(".")[-2] for name in attention} == {"SelfAttention", "EncDecAttention"}


def test_prompts_and_answers_are_tokenized_apart(made: Assembled, tmp_path: Path) -> None:
    """The encoder reads what a client's processor makes of the prompt, end token included."""
    sample = vqa_samples(tmp_path)[0]
    encoder = encoder_of(made.processor)
    (item,) = encoder.encode([sample]).encoded
    prompt, answer = item.input_ids[: item.prompt].tolist(), item.input_ids[item.prompt :].tolist()
    assert prompt == encoder.prompt_ids(sample)
    assert prompt[-1] == answer[-1] == made.processor.tokenizer.eos_token_id
    assert made.processor.tokenizer.decode(answer[:-1]) == sample.answer
    assert (item.labels[: item.prompt] == IGNORED).all()
    assert item.labels[item.prompt :].tolist() == answer


def test_every_answer_of_a_dialogue_is_a_row(made: Assembled, tmp_path: Path) -> None:
    sample = vqa_samples(tmp_path)[0]
    more = (Turn("user", "and now?"), Turn("assistant", "blue"))
    both = (
        encoder_of(made.processor).encode([dataclasses.replace(sample, turns=(*sample.turns, *more))]).encoded
    )
    assert [item.sample.answer for item in both] == [sample.answer, "blue"]
    first, second = ([token for token in item.input_ids if token != 1] for item in both)
    assert second[: len(first)] == first, "what was said is the prompt of what follows"


def test_long_prompts_are_dropped_and_long_answers_cut(made: Assembled, tmp_path: Path) -> None:
    sample = vqa_samples(tmp_path)[0]
    length = encoder_of(made.processor).encode([sample]).encoded[0].prompt or 0
    cut = encoder_of(made.processor, length + 1).encode([sample])
    assert (len(cut.encoded[0].input_ids), cut.cut) == (length + 1, [sample.where])
    assert encoder_of(made.processor, length).encode([sample]).dropped == [sample.where]


@pytest.mark.parametrize(("quantization", "checkpointing"), [("none", False), ("none", True), ("nf4", False)])
def test_losses_and_gradients_are_those_of_the_stock_class(
    quantization: str, checkpointing: bool, made: Assembled, tmp_path: Path
) -> None:
    """From pixels and from kept features, against the stock forward with labels: float32, relative 1e-4."""
    model, processor = adapted_model(made.folder or Path(), quantization, checkpointing)
    batch = batch_of(processor, tmp_path)
    names = ("input_ids", "attention_mask", "pixel_values")
    model.zero_grad()
    stock: Any = model(**{name: batch[name] for name in names}, labels=batch["decoder_labels"]).loss
    stock.backward()
    theirs = {
        name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
    }
    with torch.no_grad():
        kept = {**batch, "image_features": projector_input(model, batch["pixel_values"])}
    del kept["pixel_values"]
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    for given in (batch, kept):
        loss, ours = gradients(model, given)
        torch.testing.assert_close(loss, stock.detach(), rtol=1e-5, atol=1e-5)
        assert ours.keys() == theirs.keys()
        for name, gradient in theirs.items():
            torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6 * largest)
    adapted = {name.split("language_model.")[1].split(".")[0] for name in theirs if "lora_" in name}
    assert adapted == {"encoder", "decoder"}
    assert any("query_tokens" in name for name in theirs)


def test_only_the_blocks_are_quantized(made: Assembled) -> None:
    model, _ = load_quantized(made.folder or Path(), "nf4", torch.float32)
    assert {name for name, part in model.named_modules() if is_quantized(part)} == {
        name for name in block_linears(model) if not name.endswith(".wo")
    }


def test_answers_and_scores_are_those_of_the_stock_class(made: Assembled, tmp_path: Path) -> None:
    samples, encoder = vqa_samples(tmp_path), encoder_of(made.processor)
    pixels = PixelInputs(made.processor.image_processor, 10**6)
    notes: list[str] = []
    predictor = SamplePredictor(made.model, encoder, pixels, batch_size=8, note=notes.append)
    answers = predictor.generate(samples, 5)
    scores = predictor.scores(samples[:2], ["red", "yes"])
    assert "reads prompts in both directions" in notes[0]
    for number, (sample, answer) in enumerate(zip(samples, answers, strict=True)):
        ids, values = torch.tensor([encoder.prompt_ids(sample)]), pixels(sample.images)["pixel_values"]
        written = made.model.generate(pixel_values=values, input_ids=ids, max_new_tokens=5, do_sample=False)
        assert answer == made.processor.decode(written[0], skip_special_tokens=True).strip()
        for column, candidate in enumerate(("red", "yes") if number < 2 else ()):
            labels = torch.tensor([made.processor.tokenizer(candidate).input_ids])
            with torch.no_grad():
                loss = made.model(pixel_values=values, input_ids=ids, labels=labels).loss * labels.shape[1]
            assert float(scores[number, column]) == pytest.approx(-float(loss), rel=1e-4)


@torch.no_grad()
def test_texts_without_images_are_the_llms_own(made: Assembled) -> None:
    ids, answer = torch.tensor([[40, 41, 42, 1]]), torch.tensor([[50, 1]])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_labels": answer}
    expected = made.model.language_model(input_ids=ids, labels=answer).logits
    assert torch.equal(made.model(**model_inputs(made.model, given)).logits, expected)


def test_packing_is_refused_with_its_reason(made: Assembled) -> None:
    assert "reads prompts in both directions" in str(why_not_exact(made.model, 10))


@pytest.mark.parametrize("fusion", ["mlp", "pixel-shuffle", "cross-attention"])
def test_other_fusions_do_not_hold_it(fusion: str, sources: Path) -> None:
    with pytest.raises(AssemblyError, match="an encoder beside its decoder"):
        assemble(sources / "t5", sources / "vit", None, fusion_name=fusion, dtype="float32", prove=False)
    with pytest.raises(AssemblyError, match="an encoder beside its decoder"):
        assembled_blueprint(sources / "t5", sources / "vit", torch.float32, fusion_name=fusion)


def test_plain_texts_are_no_objective_of_it(made: Assembled) -> None:
    with pytest.raises(AssemblyError, match="no prompt for the encoder"):
        PlainText().encode(encoder_of(made.processor), [])


def test_a_plan_traces_a_step_without_weights(sources: Path, tmp_path: Path) -> None:
    blueprint = assembled_blueprint(
        sources / "t5", sources / "vit", torch.float32, fusion_name="qformer", queries=QUERIES
    )
    trace = traced(blueprint, "none", torch.float32, LoraSettings(rank=4), {"vqa": Vqa()})
    items = encoder_of(blueprint.processor).encode(vqa_samples(tmp_path)).encoded
    peaks = [
        trace.peak(MicroBatch("vqa", Vqa(), items[:rows], ("projector", "lora"), True, False, False, None))[0]
        for rows in (2, 8)
    ]
    assert 0 < peaks[0] < peaks[1]


@pytest.mark.slow
def test_trained_merged_exported_and_verified(sources: Path, tmp_path: Path) -> None:
    recipe = values(sources, tmp_path)
    recipe["model"] |= {"llm": str(sources / "t5"), "tower": str(sources / "vit"), "fusion": "qformer"}
    recipe["data"] = {"packing": "shared"}
    quiet, run = Reporter(quiet=True), tmp_path / "run"
    with pytest.raises(RecipeError, match="reads prompts in both directions"):
        train(load_recipe(None, (), recipe).recipe, tmp_path / "packed", quiet)
    recipe["data"] = {"features": "memory"}
    train(load_recipe(None, (), recipe).recipe, run, quiet)
    result = merge_run(run, tmp_path / "merged", quiet)
    assert result["answers_equal"] == result["answers"]
    assert not verify_folder(tmp_path / "merged", run, quiet)["missing_keys"]
    exported = export_run(run, "adapter", tmp_path / "adapter", quiet)
    assert max(exported["clients"].values()) < 1e-5
