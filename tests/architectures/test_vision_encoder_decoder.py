"""VisionEncoderDecoder: cross-attention that starts as a no-op, and the whole way of a run with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    VisionEncoderDecoderModel,
)

from lockadapt.architectures import architecture_of
from lockadapt.architectures.assemble import Assembled, assemble
from lockadapt.architectures.blocks import block_linears
from lockadapt.architectures.blueprint import assembled_blueprint
from lockadapt.architectures.features import projector_input
from lockadapt.console import Reporter
from lockadapt.data.batch import Batch, collate
from lockadapt.data.encode import Encoder
from lockadapt.data.pixels import PixelInputs
from lockadapt.data.sample import Sample, question_answer
from lockadapt.errors import AssemblyError, DataError, RecipeError
from lockadapt.evaluation.evaluate import evaluate_folder
from lockadapt.evaluation.predict import SamplePredictor
from lockadapt.exports.export import export_run
from lockadapt.exports.merge import merge_run
from lockadapt.exports.verify import verify_folder
from lockadapt.recipe.read import load_recipe
from lockadapt.training.loop import train
from lockadapt.tuning.quantize import is_quantized, load_quantized
from tests.support.packing import adapted_model, gradients
from tests.support.rows import vqa_samples
from tests.support.runs import values
from tests.support.tiny import tiny_llm, tiny_tower

COLOURS = [Image.new("RGB", (8, 8), colour) for colour in ("red", "white", "blue", "green")]
QUIET = Reporter(quiet=True)
DECODERS = ("gpt2", "xglm", "bert", "roberta", "electra")
EXACT = ("gpt2", "xglm")
PROVED = ("gpt2", "roberta")
"""In a fresh process too."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for kind in DECODERS:
        tiny_llm(kind, folder / kind)
    tiny_tower("clip-vision", folder / "clip-vision")
    return folder


@pytest.fixture(scope="module")
def made(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Assembled]:
    output = tmp_path_factory.mktemp("crossed")
    return {
        kind: assemble(
            sources / kind,
            sources / "clip-vision",
            output / kind,
            fusion_name="cross-attention",
            dtype="float32",
            calibration_images=COLOURS,
            prove=kind in PROVED,
        )
        for kind in DECODERS
    }


@torch.no_grad()
def awake(model: Any) -> Any:
    """Lets cross-attention say something, as after training."""
    chance = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("crossattention", "encoder_attn")) and parameter.dim() > 1:
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=chance))
    return model


def batches(processor: Any, folder: Path) -> tuple[list[Sample], Batch, Batch]:
    """Questions about three images, plain and packed."""
    samples = vqa_samples(folder, repeat=2)
    items = Encoder(processor, 200).encode(samples).encoded
    pixels, pad = PixelInputs(processor.image_processor, 10**6), processor.tokenizer.pad_token_id
    return samples, collate(items, pixels, pad, "vqa"), collate(items, pixels, pad, "vqa", 120)


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_it_starts_as_the_llm_whatever_the_image(
    kind: str, made: dict[str, Assembled], sources: Path
) -> None:
    proof = made[kind].report.proof
    assert proof.fresh_process == (kind in PROVED)
    assert made[kind].report.calibrated_on == len(COLOURS)
    assert proof.logit_difference == 0.0 if kind in EXACT else proof.logit_difference < 5e-6
    source = AutoModelForCausalLM.from_pretrained(sources / kind).eval()
    again, info = AutoModelForImageTextToText.from_pretrained(made[kind].folder, output_loading_info=True)
    assert isinstance(again, VisionEncoderDecoderModel)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = torch.randint(3, 290, (2, 9), generator=torch.Generator().manual_seed(1))
    logits = [
        again.eval()(pixel_values=pixels, decoder_input_ids=ids).logits
        for pixels in torch.randn(2, 2, 3, 32, 32)
    ]
    assert torch.equal(*logits)
    torch.testing.assert_close(
        logits[0], source(input_ids=ids).logits, rtol=0, atol=0 if kind in EXACT else 5e-6
    )


@torch.no_grad()
def test_a_client_asks_with_the_tokenizers_template(made: dict[str, Assembled]) -> None:
    processor = AutoProcessor.from_pretrained(made["gpt2"].folder)
    content = [{"type": "image"}, {"type": "text", "text": "is it red?"}]
    prompt = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    assert prompt == "<s>is it red?\n"
    model = made["gpt2"].model
    ids = processor.tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
    pixels = processor.image_processor(images=COLOURS[:1], return_tensors="pt").pixel_values
    written = model.generate(pixel_values=pixels, decoder_input_ids=ids, max_new_tokens=3, do_sample=False)
    assert written[0, : ids.shape[1]].tolist() == ids[0].tolist(), "nothing is put before the prompt"


@pytest.mark.parametrize(("quantization", "checkpointing"), [("none", False), ("none", True), ("nf4", False)])
@pytest.mark.parametrize("kind", DECODERS)
def test_loss_and_gradients_are_the_stock_forwards(
    kind: str, quantization: str, checkpointing: bool, made: dict[str, Assembled], tmp_path: Path
) -> None:
    model, processor = adapted_model(made[kind].folder or Path(), quantization, checkpointing)
    awake(model)
    _, plain, packed = batches(processor, tmp_path)
    model.zero_grad()
    shifted = torch.full_like(plain["input_ids"], -100)  # the class does not shift labels
    shifted[plain["predicting"]] = plain["targets"]
    stock = model(
        pixel_values=plain["pixel_values"],
        decoder_input_ids=plain["input_ids"],
        decoder_attention_mask=plain["attention_mask"],
        labels=shifted,
    )
    stock.loss.backward()
    theirs = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    features = projector_input(model, plain["pixel_values"])
    kept = {
        **{name: value for name, value in plain.items() if name != "pixel_values"},
        "image_features": features,
    }
    for batch in (plain, kept, packed):
        loss, ours = gradients(model, batch)
        torch.testing.assert_close(loss, stock.loss.detach(), rtol=1e-5, atol=1e-5)
        assert ours.keys() == theirs.keys()
        for name, gradient in theirs.items():
            allowed = 2e-5 * max(float(gradient.abs().max()), 0.05)
            torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=allowed, msg=name)


def test_a_packed_row_is_about_one_image(made: dict[str, Assembled], tmp_path: Path) -> None:
    samples, plain, packed = batches(made["gpt2"].processor, tmp_path)
    images = len({image.key for sample in samples for image in sample.images})
    assert packed["input_ids"].shape[0] == images == len(packed["image_rows"]) < plain["input_ids"].shape[0]


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
@torch.no_grad()
def test_answers_do_not_depend_on_what_is_asked_beside(
    kind: str, made: dict[str, Assembled], tmp_path: Path
) -> None:
    model, processor = load_quantized(made[kind].folder or Path(), "none", torch.float32)
    awake(model)
    images = [sample.images for sample in vqa_samples(tmp_path)]
    questions = ("is it?", "what color is the shape in the image? red green blue")
    samples = [question_answer(text, "", list(shown), "row") for text in questions for shown in images]
    predictor = SamplePredictor(model, Encoder(processor, 200), PixelInputs(processor.image_processor, 10**6))
    together = predictor.generate(samples, 5)
    assert together == [predictor.generate([sample], 5)[0] for sample in samples]
    ids = [predictor.encoder.prompt_ids(sample) for sample in (samples[0], samples[-1])]
    short, long = (torch.tensor([prompt]) for prompt in ids)
    padded = F.pad(short, (long.shape[1] - short.shape[1], 0), value=2)
    pixels = predictor.images(samples[0].images)["pixel_values"]

    def continued(given: Tensor) -> Tensor:
        answer = model.generate(
            pixel_values=pixels,
            decoder_input_ids=given,
            decoder_attention_mask=(given != 2).long(),
            max_new_tokens=2,
            pad_token_id=2,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return answer.logits[0]

    assert not torch.allclose(continued(padded), continued(short), atol=1e-3), "what this test is there for"


def test_rows_need_one_image(made: dict[str, Assembled], tmp_path: Path) -> None:
    processor, model = made["gpt2"].processor, made["gpt2"].model
    predictor = SamplePredictor(model, Encoder(processor, 200), PixelInputs(processor.image_processor, 10**6))
    (image,) = vqa_samples(tmp_path)[0].images
    with pytest.raises(DataError, match="one image a row"):
        predictor.generate([question_answer("is it?", "", [image, image], "row")], 2)
    with pytest.raises(DataError, match="about an image only"):
        predictor.generate([question_answer("is it?", "", [], "row")], 2)


def test_only_the_llms_own_layers_are_adapted_and_quantized(made: dict[str, Assembled]) -> None:
    for kind in ("gpt2", "bert", "xglm"):
        targets = set(block_linears(made[kind].model))
        assert targets
        assert not any("cross" in name or "encoder_attn" in name for name in targets)
    model, _ = load_quantized(made["bert"].folder or Path(), "nf4", torch.float32)
    assert {name for name, part in model.named_modules() if is_quantized(part)} == set(block_linears(model))


def test_blueprint_has_the_same_shapes(made: dict[str, Assembled], sources: Path) -> None:
    for kind in ("gpt2", "roberta"):
        planned = assembled_blueprint(
            sources / kind, sources / "clip-vision", torch.float32, fusion_name="cross-attention"
        ).model
        assert architecture_of(planned).layout == architecture_of(made[kind].model).layout
        assert {name: tensor.shape for name, tensor in made[kind].model.state_dict().items()} == {
            name: tensor.shape for name, tensor in planned.state_dict().items()
        }


def test_what_has_no_cross_attention_is_refused(tiny: Path, tmp_path: Path) -> None:
    llm = tiny_llm("olmo2", tmp_path / "llm")
    with pytest.raises(
        AssemblyError, match="VisionEncoderDecoderModel cannot, as Olmo2ForCausalLM has no cross"
    ):
        assemble(llm, tiny / "clip-vision", None, fusion_name="cross-attention", dtype="float32", prove=False)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "packing"), [("gpt2", "none"), ("bert", "shared")])
def test_trained_merged_and_verified(kind: str, packing: str, sources: Path, tmp_path: Path) -> None:
    recipe = values(sources, tmp_path)
    recipe["model"] |= {"llm": str(sources / kind), "fusion": "cross-attention"}
    recipe["data"] = {"packing": packing, "features": "memory"}
    train(load_recipe(None, (), recipe).recipe, tmp_path / "run", QUIET)
    scores = evaluate_folder(tmp_path / "run", None, (), False, None, QUIET)
    result = merge_run(tmp_path / "run", tmp_path / "merged", QUIET)
    assert result["model_class"] == "VisionEncoderDecoderModel"
    assert result["looks_at_images"]
    assert evaluate_folder(tmp_path / "merged", None, (), False, None, QUIET) == scores
    report = verify_folder(tmp_path / "merged", tmp_path / "run", QUIET)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert verify_folder(tmp_path / "merged", None, QUIET)["image_effect"] > 0
    if kind == "gpt2":
        exported = export_run(tmp_path / "run", "adapter", tmp_path / "adapter", QUIET)
        assert set(exported["clients"]) == {"peft", "load_adapter"}
        assert exported["servable"]["vllm"] is not True
        with pytest.raises(RecipeError, match="beside LoRA in the same blocks"):
            export_run(tmp_path / "run", "adapter-full", tmp_path / "full", QUIET)


@pytest.mark.slow
def test_kept_features_stand_in_for_the_tower(sources: Path, tmp_path: Path) -> None:
    recipe = values(sources, tmp_path)
    recipe["model"] |= {"llm": str(sources / "gpt2"), "fusion": "cross-attention"}
    recipe["data"] = {"features": "disk", "cache": str(tmp_path / "cache")}
    recipe["training"]["steps"] = 2
    train(load_recipe(None, (), recipe).recipe, tmp_path / "run", QUIET)
    recipe["model"] = {"vlm": str(tmp_path / "run" / "base"), "dtype": "float32"}
    notes: list[str] = []
    reporter = Reporter(quiet=True)
    reporter.note = notes.append  # type: ignore[method-assign]
    train(load_recipe(None, (), recipe).recipe, tmp_path / "again", reporter)
    assert any("the tower is not loaded" in note for note in notes)
