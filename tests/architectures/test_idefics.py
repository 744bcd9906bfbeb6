"""IDEFICS-1: gated cross-attention that starts as a no-op, and texts that stay locked while it trains."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    IdeficsForVisionText2Text,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from lockadapt.architectures import architecture_of
from lockadapt.architectures.assemble import Assembled, assemble
from lockadapt.architectures.blocks import block_linears, blocks_path
from lockadapt.architectures.blueprint import assembled_blueprint
from lockadapt.architectures.features import projector_input
from lockadapt.architectures.idefics import interval
from lockadapt.console import Reporter
from lockadapt.data.batch import Batch, collate
from lockadapt.data.encode import Encoder
from lockadapt.data.pixels import PixelInputs
from lockadapt.data.sample import Sample, question_answer
from lockadapt.errors import AdapterError, AssemblyError, LockError, RecipeError, VerificationError
from lockadapt.evaluation.predict import SamplePredictor
from lockadapt.exports.merge import merge_run
from lockadapt.exports.verify import verify_folder
from lockadapt.recipe.read import load_recipe
from lockadapt.training.config import GroundingConfig
from lockadapt.training.loop import train
from lockadapt.training.optimizer import parameter_groups
from lockadapt.tuning.adapters import set_trainable
from lockadapt.tuning.locks import prove_text_locked
from lockadapt.tuning.quantize import is_quantized, load_quantized
from tests.support.packing import adapted_model, gradients
from tests.support.rows import vqa_samples
from tests.support.runs import values
from tests.support.tiny import GROUPED, tiny_llm, tiny_tower

COLOURS = [Image.new("RGB", (8, 8), colour) for colour in ("red", "white", "blue", "green")]
QUIET = Reporter(quiet=True)
KINDS = ("llama", "llama-tied", "mistral")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for kind in KINDS:
        tiny_llm(kind, folder / kind)
    tiny_tower("clip-vision", folder / "clip-vision")
    return folder


@pytest.fixture(scope="module")
def made(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Assembled]:
    output = tmp_path_factory.mktemp("gated")
    return {
        kind: assemble(
            sources / kind,
            sources / "clip-vision",
            output / kind,
            fusion_name="cross-attention",
            dtype="float32",
            calibration_images=COLOURS,
            prove=kind == "llama",
        )
        for kind in KINDS
    }


@torch.no_grad()
def awake(model: Any) -> Any:
    """Opens the gates, as training does."""
    for name, parameter in model.named_parameters():
        if ".alpha_" in name:
            parameter.fill_(0.7)
    return model


def batches(processor: Any, folder: Path) -> tuple[Batch, Batch]:
    """Rows with one image, with two, and with none; plain and packed."""
    samples = vqa_samples(folder, repeat=2)
    (first,), (second,) = samples[0].images, samples[2].images
    samples.append(question_answer("are they red?", "no", [first, second], "row"))
    samples.append(question_answer("are they blue?", "yes", [first, second], "row"))
    samples.append(question_answer("is it?", "yes", [], "row"))
    items = Encoder(processor, 200).encode(samples).encoded
    pixels, pad = PixelInputs(processor.image_processor, 10**6), processor.tokenizer.pad_token_id
    return collate(items, pixels, pad, "vqa"), collate(items, pixels, pad, "vqa", 120)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_it_starts_as_the_llm_whatever_the_image(
    kind: str, made: dict[str, Assembled], sources: Path
) -> None:
    assert made[kind].report.proof.logit_difference == 0.0
    assert made[kind].report.proof.feature_difference == 0.0
    assert made[kind].report.proof.fresh_process == (kind == "llama")
    source = AutoModelForCausalLM.from_pretrained(sources / kind).eval()
    again, info = AutoModelForImageTextToText.from_pretrained(made[kind].folder, output_loading_info=True)
    assert isinstance(again, IdeficsForVisionText2Text)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = torch.randint(3, 290, (2, 9), generator=torch.Generator().manual_seed(1))
    for sees in (1, 0):
        logits = again.eval()(
            input_ids=ids,
            pixel_values=torch.randn(2, 1, 3, 32, 32),
            image_attention_mask=torch.full((2, 9, 1), sees),
        ).logits
        assert torch.equal(logits, source(input_ids=ids).logits)


@pytest.mark.parametrize(("quantization", "checkpointing"), [("none", False), ("none", True), ("nf4", False)])
def test_loss_and_gradients_are_the_stock_forwards(
    quantization: str, checkpointing: bool, made: dict[str, Assembled], tmp_path: Path
) -> None:
    model, processor = adapted_model(made["llama"].folder or Path(), quantization, checkpointing)
    awake(model)
    plain, packed = batches(processor, tmp_path)
    rows, tokens = plain["input_ids"].shape
    pixels = torch.zeros(rows, 2, *plain["pixel_values"].shape[1:])
    sees = torch.zeros(rows, tokens, 2, dtype=torch.long)
    for row in range(rows):
        own = plain["pixel_values"][plain["image_rows"] == row]
        pixels[row, : len(own)] = own
        sees[row, :, : len(own)] = 1
    labels = torch.full_like(plain["input_ids"], -100)
    row, column = plain["predicting"].nonzero(as_tuple=True)
    labels[row, column + 1] = plain["targets"]  # this class shifts labels
    model.zero_grad()
    stock = model(
        input_ids=plain["input_ids"],
        attention_mask=plain["attention_mask"],
        pixel_values=pixels,
        image_attention_mask=sees,
        labels=labels,
    )
    stock.loss.backward()
    theirs = {name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None}
    features = projector_input(model, plain["pixel_values"])
    kept = {name: value for name, value in plain.items() if name != "pixel_values"}
    for batch in (plain, {**kept, "image_features": features}, packed):
        loss, ours = gradients(model, batch)
        torch.testing.assert_close(loss, stock.loss.detach(), rtol=1e-5, atol=1e-5)
        assert ours.keys() == theirs.keys()
        for name, gradient in theirs.items():
            allowed = 2e-5 * max(float(gradient.abs().max()), 0.05)
            torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=allowed, msg=name)


@torch.no_grad()
def test_answers_do_not_depend_on_what_is_asked_beside(made: dict[str, Assembled], tmp_path: Path) -> None:
    model, processor = load_quantized(made["llama"].folder or Path(), "none", torch.float32)
    awake(model)
    images = [sample.images for sample in vqa_samples(tmp_path)]
    questions = ("is it?", "what color is the shape in the image? red green blue")
    samples: list[Sample] = [
        question_answer(text, "", list(shown), "row")
        for text in questions
        for shown in (*images[::2], (), (*images[0], *images[2]))
    ]
    predictor = SamplePredictor(model, Encoder(processor, 200), PixelInputs(processor.image_processor, 10**6))
    together = predictor.generate(samples, 5)
    assert together == [predictor.generate([sample], 5)[0] for sample in samples]
    ranked = predictor.rank(samples, ["red", "yes", "no"])
    alone = dataclasses.replace(predictor, max_row_tokens=None)
    assert ranked == [alone.rank([sample], ["red", "yes", "no"])[0] for sample in samples]


def test_only_the_llms_own_layers_are_adapted_and_quantized(made: dict[str, Assembled]) -> None:
    model, _ = load_quantized(made["llama"].folder or Path(), "nf4", torch.float32)
    assert blocks_path(model) == "model.layers"
    assert {name for name, part in model.named_modules() if is_quantized(part)} == set(block_linears(model))
    assert all(name.startswith("model.layers.") for name in block_linears(model))


def test_gates_and_norms_are_not_decayed(made: dict[str, Assembled]) -> None:
    model, _ = load_quantized(made["llama"].folder or Path(), "none", torch.float32)
    set_trainable(model, ["projector"])
    config = GroundingConfig("out", weight_decay=0.1, projector_learning_rate=3e-3, use_cpu=True)
    groups = {group["group"]: group for group in parameter_groups(model, config)}
    assert groups["gates"]["weight_decay"] == 0.0
    assert groups["gates"]["lr"] == groups["projector"]["lr"] == 3e-3
    assert groups["projector"]["weight_decay"] == 0.1
    assert {part.dim() for part in groups["gates"]["params"]} == {1}
    assert {part.dim() for part in groups["projector"]["params"]} == {2}


def test_blueprint_has_the_same_shapes(made: dict[str, Assembled], sources: Path) -> None:
    planned = assembled_blueprint(
        sources / "llama", sources / "clip-vision", torch.float32, fusion_name="cross-attention"
    ).model
    assert architecture_of(planned).layout == architecture_of(made["llama"].model).layout
    shapes = {name: tensor.shape for name, tensor in made["llama"].model.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in planned.state_dict().items()}


def test_gated_layers_are_spread_evenly() -> None:
    assert [interval(depth) for depth in (1, 2, 4, 7, 8, 12, 30, 32)] == [1, 1, 1, 1, 2, 3, 3, 4]


@pytest.mark.parametrize(
    ("llm", "tower", "message"),
    [
        ("qwen2", "clip-vision", "IdeficsForVisionText2Text cannot, as Qwen2ForCausalLM is no plain Llama"),
        ("llama", "vit", "IdeficsForVisionText2Text cannot, as ViTModel is no CLIP"),
    ],
)
def test_what_it_cannot_hold_is_refused(llm: str, tower: str, message: str, tmp_path: Path) -> None:
    parts = tiny_llm(llm, tmp_path / "llm"), tiny_tower(tower, tmp_path / "tower")
    with pytest.raises(AssemblyError, match=message):
        assemble(*parts, None, fusion_name="cross-attention", dtype="float32", prove=False)


@pytest.mark.parametrize("llm", ["gemma", "smollm3"])
def test_what_only_looks_like_a_llama_fails_the_proof(llm: str, sources: Path, tmp_path: Path) -> None:
    folder = tiny_llm(llm, tmp_path / "llm")
    if llm == "smollm3":  # every second layer without positions
        config = SmolLM3Config(**GROUPED, no_rope_layer_interval=2, tie_word_embeddings=True)
        SmolLM3ForCausalLM(config).save_pretrained(folder)
    with pytest.raises(VerificationError, match="text-only logits differ"):
        assemble(
            folder,
            sources / "clip-vision",
            None,
            fusion_name="cross-attention",
            dtype="float32",
            prove=False,
        )


def test_texts_are_locked_without_lora_and_in_classes_that_can(
    tiny: Path, made: dict[str, Assembled], tmp_path: Path
) -> None:
    recipe = values(tiny, tmp_path)
    recipe["model"] |= {"fusion": "cross-attention", "lock_text": True}
    with pytest.raises(RecipeError, match="set `lora: null`"):
        load_recipe(None, (), recipe)
    adapted, _ = adapted_model(made["llama"].folder or Path(), "none", False)
    with pytest.raises(AdapterError, match="lora would change"):
        set_trainable(adapted, ["projector", "lora"], lock_text=True)
    plain = assemble(tiny / "llama", tiny / "clip-vision", None, dtype="float32", prove=False)
    with pytest.raises(AdapterError, match="LlavaForConditionalGeneration cannot keep"):
        set_trainable(plain.model, ["projector"], lock_text=True)
    with pytest.raises(LockError, match="by up to 0.5"):
        prove_text_locked([torch.zeros(1, 2, 3)], [torch.full((1, 2, 3), 0.5)])


@pytest.mark.slow
@pytest.mark.parametrize("locked", [True, False])
def test_trained_merged_and_verified(locked: bool, sources: Path, tmp_path: Path) -> None:
    recipe = values(sources, tmp_path)
    recipe["model"] |= {"fusion": "cross-attention", "lock_text": locked}
    recipe["data"] = {"packing": "shared", "features": "memory"}
    recipe["lora"] = None
    recipe["training"]["steps"] = 12
    train(load_recipe(None, (), recipe).recipe, tmp_path / "run", QUIET)
    stage = json.loads((tmp_path / "run" / "run.json").read_text())["stages"][0]
    assert stage["text_logit_change"] == (0.0 if locked else None)
    result = merge_run(tmp_path / "run", tmp_path / "merged", QUIET)
    assert result["model_class"] == "IdeficsForVisionText2Text"
    assert result["text_samples"] > 0
    assert result["looks_at_images"]
    assert verify_folder(tmp_path / "merged", tmp_path / "run", QUIET)["answers_equal"] == result["answers"]
    source = AutoModelForCausalLM.from_pretrained(sources / "llama").eval()
    merged = IdeficsForVisionText2Text.from_pretrained(tmp_path / "merged").eval()
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        logits = merged(
            input_ids=ids,
            pixel_values=torch.zeros(1, 1, 3, 32, 32),
            image_attention_mask=torch.zeros(1, 9, 1, dtype=torch.long),
        ).logits
        assert torch.equal(logits, source(input_ids=ids).logits) == locked
