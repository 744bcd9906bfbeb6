"""BLIP-2 around decoders: assembled and proved, calibrated, kept features, packed, trained, merged, exported, verified."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Blip2ForConditionalGeneration,
    Dinov2Config,
)
from transformers import Dinov2Model as Dinov2

from lockadapt.architectures import layout_of
from lockadapt.architectures.assemble import Assembled, assemble
from lockadapt.architectures.blip2.tower import blip2_tower
from lockadapt.architectures.blocks import attention_linears, block_linears
from lockadapt.architectures.blueprint import assembled_blueprint
from lockadapt.architectures.calibrate import embedding_rms
from lockadapt.architectures.features import image_arguments, projector_input
from lockadapt.architectures.load import load_model
from lockadapt.console import Reporter
from lockadapt.data.batch import collate
from lockadapt.data.encode import Encoder
from lockadapt.data.pixels import PixelInputs
from lockadapt.data.sample import Turn
from lockadapt.errors import AssemblyError, RecipeError, VerificationError
from lockadapt.evaluation.predict import SamplePredictor
from lockadapt.exports.export import export_run
from lockadapt.exports.merge import merge_run
from lockadapt.exports.verify import verify_folder
from lockadapt.objectives import Vqa
from lockadapt.objectives.answer_tokens import answer_loss, model_inputs, writer_of
from lockadapt.planning.trace import MicroBatch, traced
from lockadapt.recipe.read import load_recipe
from lockadapt.training.loop import train
from lockadapt.tuning.adapters import LoraSettings
from lockadapt.tuning.quantize import is_quantized, load_quantized
from tests.support.packing import adapted_model, gradients, plain_and_packed
from tests.support.rows import padded_labels, vqa_samples
from tests.support.runs import values
from tests.support.tiny import VIT, tiny_llm, tiny_tower

COLOURS = [Image.new("RGB", (8, 8), colour) for colour in ("red", "white", "blue", "green")]
QUERIES = 3
SETTINGS = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tower("vit", tmp_path_factory.mktemp("tower") / "vit")


@pytest.fixture(scope="module")
def made(tiny: Path, vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Assembled:
    output = tmp_path_factory.mktemp("blip2") / "base"
    return assemble(
        tiny / "llama",
        vit,
        output,
        fusion_name="qformer",
        queries=QUERIES,
        dtype="float32",
        calibration_images=COLOURS,
    )


def batch_of(made: Assembled) -> dict[str, Any]:
    return dict(
        made.processor(
            text=["<image>yes", "<image>no"], images=COLOURS[:2], padding=True, return_tensors="pt"
        )
    )


def test_it_is_proved_in_a_fresh_process(made: Assembled) -> None:
    assert made.report.proof.fresh_process
    assert made.report.proof.logit_difference == 0.0
    assert (made.report.fusion, made.report.calibrated_on) == ("qformer", len(COLOURS))
    again, info = AutoModelForImageTextToText.from_pretrained(made.folder, output_loading_info=True)
    assert isinstance(again, Blip2ForConditionalGeneration)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = AutoProcessor.from_pretrained(made.folder)(text="<image>", images=COLOURS[0])["input_ids"][0]
    assert ids.count(made.model.config.image_token_id) == QUERIES == again.config.num_query_tokens


def test_parts_lie_where_the_llms_class_has_them(made: Assembled, vit: Path, tmp_path: Path) -> None:
    layout = layout_of(made.model)
    assert (layout.llm, layout.head) == ("language_model.model", "language_model.lm_head")
    other = assemble(
        tiny_llm("gpt2", tmp_path / "llm"), vit, None, fusion_name="qformer", dtype="float32", prove=False
    )
    assert layout_of(other.model).llm == "language_model.transformer"
    assert other.model.config.num_query_tokens == 32
    assert next(iter(block_linears(other.model))).startswith("language_model.transformer.h.0.")
    assert all(".attn." in name for name in attention_linears(other.model))


def test_calibrated_tokens_are_as_large_as_words_and_features_are_standardised(made: Assembled) -> None:
    pixels = made.processor.image_processor(images=COLOURS, return_tensors="pt")["pixel_values"]
    features = projector_input(made.model, pixels)
    tokens = made.model.get_image_features(pixels).pooler_output.detach()
    assert float(tokens.square().mean().sqrt()) == pytest.approx(embedding_rms(made.model), rel=1e-3)
    for layer in made.model.qformer.encoder.layer:
        for part in (layer.crossattention.attention.key, layer.crossattention.attention.value):
            assert float(part(features).detach().mean((0, 1)).abs().max()) < 1e-4, "the mean is folded away"


def test_queries_differ(made: Assembled) -> None:
    rows = made.model.get_image_features(torch.randn(1, 3, 32, 32)).pooler_output[0]
    assert float((rows[0] - rows[1]).abs().max()) > 1e-2 * float(rows.abs().max())


@torch.no_grad()
def test_kept_features_are_what_pixels_give(made: Assembled) -> None:
    batch = batch_of(made)
    expected, written = made.model(**batch).logits, made.model.generate(**batch, **SETTINGS)
    features = projector_input(made.model, batch.pop("pixel_values"))
    given = image_arguments(made.model, features)
    torch.testing.assert_close(made.model(**batch, **given).logits, expected)
    writer, arguments = writer_of(made.model, {**batch, **image_arguments(made.model, features)})
    assert torch.equal(writer.generate(**arguments, **SETTINGS), written)
    swapped = image_arguments(made.model, features.flip(0))
    assert not torch.allclose(made.model(**batch, **swapped).logits, expected)


@torch.no_grad()
def test_texts_without_images_are_the_llms_own(made: Assembled) -> None:
    ids = torch.tensor([[0, 40, 41, 42]])
    inputs = model_inputs(made.model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    expected = made.model.language_model(input_ids=ids).logits
    assert torch.equal(made.model(**inputs).logits, expected)
    writer, arguments = writer_of(made.model, inputs)
    assert torch.equal(
        writer.generate(**arguments, **SETTINGS), made.model.language_model.generate(ids, **SETTINGS)
    )


@pytest.mark.parametrize(("quantization", "checkpointing"), [("none", False), ("none", True), ("nf4", False)])
def test_losses_and_gradients_are_those_of_the_stock_class(
    quantization: str, checkpointing: bool, made: Assembled, tmp_path: Path
) -> None:
    """Plain, packed and kept, against the stock forward with labels: float32, relative 1e-4."""
    model, processor = adapted_model(made.folder or Path(), quantization, checkpointing)
    items, plain, packed = plain_and_packed(processor, tmp_path, 120)
    model.zero_grad()
    stock: Any = model(**model_inputs(model, plain), labels=padded_labels(items)).loss
    stock.backward()
    theirs = {
        name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
    }
    with torch.no_grad():
        kept = {**plain, "image_features": projector_input(model, plain["pixel_values"])}
    del kept["pixel_values"]
    # The bias of a key moves all scores of a query alike, so that its gradient is rounding alone.
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    for batch in (plain, packed, kept):
        loss, ours = gradients(model, batch)
        torch.testing.assert_close(loss, stock.detach(), rtol=1e-5, atol=1e-5)
        assert ours.keys() == theirs.keys()
        for name, gradient in theirs.items():
            torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6 * largest)
    trained = {name.removeprefix("base_model.model.").split(".")[0] for name in theirs}
    assert trained == {"qformer", "query_tokens", "language_projection", "language_model"}


def test_only_the_blocks_are_quantized(made: Assembled) -> None:
    model, _ = load_quantized(made.folder or Path(), "nf4", torch.float32)
    assert {name for name, part in model.named_modules() if is_quantized(part)} == set(block_linears(model))


def test_blueprint_has_the_same_shapes(made: Assembled, tiny: Path, vit: Path) -> None:
    planned = assembled_blueprint(
        tiny / "llama", vit, torch.float32, fusion_name="qformer", queries=QUERIES
    ).model.state_dict()
    assert {name: tensor.shape for name, tensor in made.model.state_dict().items()} == {
        name: tensor.shape for name, tensor in planned.items()
    }


@pytest.mark.parametrize("llm", ["phi", "gemma2", "cohere", "granite"])
def test_heads_that_llava_refuses_are_held_and_learned(llm: str, vit: Path, tmp_path: Path) -> None:
    """A bias, a soft-cap and scales: the loss is that of the stock class, so that nothing of the head is lost."""
    built = assemble(
        tiny_llm(llm, tmp_path / "llm"),
        vit,
        None,
        fusion_name="qformer",
        queries=2,
        dtype="float32",
        prove=False,
    )
    items = Encoder(built.processor, 200).encode(vqa_samples(tmp_path)).encoded
    batch = collate(items, PixelInputs(built.processor.image_processor, 10**6), 2, "vqa")
    with torch.no_grad():
        logits = built.model(**model_inputs(built.model, batch)).logits
        ours = answer_loss(built.model, batch)[0]
    labels = padded_labels(items)
    plain = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert float(ours) == pytest.approx(float(plain), rel=1e-5)


@torch.no_grad()
def test_dinov2s_scales_and_positions_are_folded_in(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = {name: value for name, value in VIT.items() if name != "intermediate_size"}
    tower = Dinov2(Dinov2Config(**{**small, "image_size": 56})).eval()
    for name, tensor in tower.named_parameters():
        if "lambda" in name or "position" in name:
            torch.nn.init.normal_(tensor)
    values = torch.randn(2, 3, 32, 32)
    made = blip2_tower(tower, 32, "here")
    torch.testing.assert_close(
        made(values).last_hidden_state, tower(values).last_hidden_state, rtol=0, atol=1e-5
    )
    assert made.config.image_size == 32


@pytest.mark.parametrize(
    ("tower", "message"),
    [
        ("clip-vision", "CLIPVisionModel has no plain blocks"),
        ("siglip-vision", "SiglipVisionModel has no plain blocks"),
        ("dinov2-registers", "no plain blocks"),
        ("mobilenet-v2", "takes towers that return tokens"),
    ],
)
def test_towers_that_blip2_cannot_hold(tower: str, message: str, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(AssemblyError, match=message):
        assemble(
            tiny / "llama",
            tiny_tower(tower, tmp_path / "tower"),
            None,
            fusion_name="qformer",
            dtype="float32",
            prove=False,
        )


def test_an_embedding_narrower_than_the_llm_is_refused(vit: Path, tmp_path: Path) -> None:
    with pytest.raises(AssemblyError, match="an embedding of 16 dimensions"):
        assemble(tiny_llm("opt-350m", tmp_path / "llm"), vit, None, fusion_name="qformer", dtype="float32")


def test_queries_are_refused_where_nothing_asks(tiny: Path, vit: Path) -> None:
    with pytest.raises(RecipeError, match="reads images without queries"):
        assemble(tiny / "llama", vit, None, queries=4)
    with pytest.raises(AssemblyError, match=r"an image takes 256 tokens"):
        assemble(tiny / "llama", vit, None, fusion_name="qformer", queries=256, dtype="float32")


def test_a_wrong_number_of_image_tokens_is_refused(made: Assembled, tmp_path: Path) -> None:
    """The stock class scatters what it has into what is there, and says nothing."""
    made.model.save_pretrained(tmp_path)
    made.processor.save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    text = json.loads(file.read_text())
    text["num_additional_image_tokens"] += 1
    file.write_text(json.dumps(text))
    with pytest.raises(VerificationError, match="has 3 tokens for an image, and the processor writes 4"):
        load_model(tmp_path, "float32")


def test_answers_are_those_of_the_stock_generate(made: Assembled, tmp_path: Path) -> None:
    """Prompts share what their image has in common, and ranking is the stock loss of each answer."""
    samples = vqa_samples(tmp_path)
    encoder = Encoder(made.processor, 200)
    pixels = PixelInputs(made.processor.image_processor, 10**6)
    predictor = SamplePredictor(made.model, encoder, pixels, batch_size=8)
    answers = predictor.generate(samples, 5)
    for sample, answer in zip(samples, answers, strict=True):
        ids = torch.tensor([encoder.prompt_ids(sample)])
        written = made.model.generate(
            pixel_values=pixels(sample.images)["pixel_values"],
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=5,
            do_sample=False,
        )
        text = made.processor.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
        assert answer == text.strip()
    scores = predictor.scores(samples[:3], ["red", "yes"])
    for row, sample in enumerate(samples[:3]):
        for column, candidate in enumerate(("red", "yes")):
            loss = stock_loss(made, encoder, pixels, sample, candidate)
            assert float(scores[row, column]) == pytest.approx(-loss, rel=1e-4)


@torch.no_grad()
def stock_loss(made: Assembled, encoder: Encoder, pixels: PixelInputs, sample: Any, answer: str) -> float:
    """The stock class's loss of an answer, summed over its tokens."""
    turns = (*sample.turns[:-1], Turn("assistant", answer))
    item = encoder.encode([dataclasses.replace(sample, turns=turns)]).encoded[0]
    labels = padded_labels([item])
    ids = torch.from_numpy(item.input_ids.astype("int64"))[None]
    out = made.model(pixel_values=pixels(sample.images)["pixel_values"], input_ids=ids, labels=labels)
    return float(out.loss) * int((labels[:, 1:] != -100).sum())


@pytest.mark.slow
def test_trained_merged_exported_and_verified(tiny: Path, vit: Path, tmp_path: Path) -> None:
    recipe = values(tiny, tmp_path)
    recipe["model"] |= {"tower": str(vit), "fusion": "qformer", "queries": QUERIES}
    recipe["data"] = {"packing": "shared", "features": "memory"}
    quiet, run = Reporter(quiet=True), tmp_path / "run"
    train(load_recipe(None, (), recipe).recipe, run, quiet)
    result = merge_run(run, tmp_path / "merged", quiet)
    assert result["model_class"] == "Blip2ForConditionalGeneration"
    assert result["answers_equal"] == result["answers"]
    assert json.loads((tmp_path / "merged/config.json").read_text())["num_query_tokens"] == QUERIES
    report = verify_folder(tmp_path / "merged", run, quiet)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    exported = export_run(run, "adapter", tmp_path / "adapter", quiet)
    assert max(exported["clients"].values()) < 1e-5
    with pytest.raises(RecipeError, match="query_tokens is a parameter"):
        export_run(run, "adapter-full", tmp_path / "full", quiet)


def test_a_plan_traces_a_step_without_weights(tiny: Path, vit: Path, tmp_path: Path) -> None:
    blueprint = assembled_blueprint(
        tiny / "llama", vit, torch.float32, fusion_name="qformer", queries=QUERIES
    )
    trace = traced(blueprint, "none", torch.float32, LoraSettings(rank=4), {"vqa": Vqa()})
    assert trace.images.shape == (17, 24), "a class token and 4 x 4 patches"
    items = Encoder(blueprint.processor, 200).encode(vqa_samples(tmp_path)).encoded
    peaks = [
        trace.peak(MicroBatch("vqa", Vqa(), items[:rows], ("projector", "lora"), True, False, False, None))[0]
        for rows in (2, 8)
    ]
    assert 0 < peaks[0] < peaks[1]
