"""Idefics3: SigLIP by its keys, proved, calibrated, kept, packed, trained, merged; grids that it gets wrong are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, Idefics3ForConditionalGeneration

from lockadapt.architectures import architecture_of, inputs_of
from lockadapt.architectures.assemble import Assembled, assemble
from lockadapt.architectures.blueprint import assembled_blueprint
from lockadapt.architectures.calibrate import embedding_rms
from lockadapt.architectures.features import image_arguments, projector_input
from lockadapt.architectures.idefics3 import IDEFICS3, keeps_positions
from lockadapt.console import Reporter
from lockadapt.data.encode import Encoder
from lockadapt.errors import AssemblyError
from lockadapt.exports.merge import merge_run
from lockadapt.exports.verify import verify_folder
from lockadapt.recipe.read import load_recipe
from lockadapt.training.loop import train
from tests.support.parity import WAYS, Way, assert_parity
from tests.support.runs import values
from tests.support.tiny import VIT, tiny_llm, tiny_tower

COLOURS = [Image.new("RGB", (8, 8), colour) for colour in ("red", "white", "blue", "green")]
FUSION: Any = {"fusion_name": "pixel-shuffle-linear", "dtype": "float32"}


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tower("siglip-vision", tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="module")
def made(tiny: Path, tower: Path, tmp_path_factory: pytest.TempPathFactory) -> Assembled:
    output = tmp_path_factory.mktemp("idefics3") / "base"
    return assemble(tiny / "llama-tied", tower, output, calibration_images=COLOURS, **FUSION)


def batch_of(made: Assembled) -> dict[str, Any]:
    shown = [[COLOURS[0].resize((40, 9))], [COLOURS[1]]]
    return dict(
        made.processor(text=["<image>yes", "<image>no"], images=shown, padding=True, return_tensors="pt")
    )


def test_it_is_proved_in_a_fresh_process(made: Assembled) -> None:
    assert architecture_of(made.model) is IDEFICS3
    assert made.report.proof.fresh_process
    assert made.report.proof.logit_difference == made.report.proof.feature_difference == 0.0
    again, info = AutoModelForImageTextToText.from_pretrained(made.folder, output_loading_info=True)
    assert isinstance(again, Idefics3ForConditionalGeneration)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_four_patches_become_one_token_between_markers(made: Assembled) -> None:
    processor = AutoProcessor.from_pretrained(made.folder)
    ids = processor(text=["<image>"], images=[[COLOURS[0]]], return_tensors="pt")["input_ids"][0]
    tokens = processor.tokenizer.convert_ids_to_tokens(ids)
    count = made.report.tower_facts.tokens // 4
    around = "<fake_token_around_image>"
    assert tokens[1:] == [around, "<global-img>", *["<image>"] * count, around]
    assert Encoder(processor, 100).image_text == "".join(tokens[1:])


def test_images_are_the_towers_own_squares(made: Assembled, tower: Path) -> None:
    own = hf.AutoImageProcessor.from_pretrained(tower, backend="pil")
    picture = Image.effect_noise((70, 33), 90).convert("RGB")
    expected = own(images=[picture], return_tensors="pt")["pixel_values"][0]
    shown = made.processor.image_processor(images=[[picture]], return_tensors="pt")["pixel_values"][0, 0]
    assert torch.equal(shown, expected)


def test_a_processor_that_cuts_tiles_is_asked_for_every_row(made: Assembled) -> None:
    processor = AutoProcessor.from_pretrained(made.folder)
    assert inputs_of(processor) is IDEFICS3.inputs
    processor.image_processor.do_image_splitting = True
    assert inputs_of(processor).stock


@torch.no_grad()
def test_calibrated_tokens_are_as_large_as_words(made: Assembled) -> None:
    pixels = made.processor.image_processor(images=COLOURS, return_tensors="pt")["pixel_values"][0]
    tokens = made.model.model.connector(projector_input(made.model, pixels))
    assert float(tokens.square().mean().sqrt()) == pytest.approx(embedding_rms(made.model), rel=1e-3)


@torch.no_grad()
def test_kept_features_are_what_pixels_give(made: Assembled) -> None:
    batch, settings = batch_of(made), {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    expected, written = made.model(**batch).logits, made.model.generate(**batch, **settings)
    features = projector_input(made.model, batch.pop("pixel_values")[:, 0])
    batch.pop("pixel_attention_mask")
    torch.testing.assert_close(made.model(**batch, **image_arguments(made.model, features)).logits, expected)
    again = made.model.generate(**batch, **image_arguments(made.model, features), **settings)
    assert torch.equal(again, written)


@pytest.mark.parametrize(("way", "quantization"), WAYS)
def test_a_step_is_the_stock_forwards(way: Way, quantization: str, made: Assembled, tmp_path: Path) -> None:
    gradients = assert_parity(made.folder or Path(), tmp_path, way, quantization)
    assert any("connector" in name for name in gradients)


def test_blueprint_has_the_same_shapes(made: Assembled, tiny: Path, tower: Path) -> None:
    planned = assembled_blueprint(
        tiny / "llama-tied", tower, torch.float32, fusion_name="pixel-shuffle-linear"
    ).model.state_dict()
    assert {name: tensor.shape for name, tensor in made.model.state_dict().items()} == {
        name: tensor.shape for name, tensor in planned.items()
    }


@pytest.mark.parametrize("llm", ["gpt2", "bloom", "qwen3", "gemma3-text"])
def test_other_llms(llm: str, tower: Path, tmp_path: Path) -> None:
    result = assemble(tiny_llm(llm, tmp_path / "llm"), tower, None, prove=False, **FUSION)
    assert architecture_of(result.model) is IDEFICS3
    batch = batch_of(result)
    result.model.train()(**batch, labels=batch["input_ids"]).loss.backward()


def test_opt_fails_in_training_and_is_refused(tower: Path, tmp_path: Path) -> None:
    folder = tiny_llm("opt", tmp_path / "llm")
    text = hf.AutoConfig.from_pretrained(folder)
    model = Idefics3ForConditionalGeneration(hf.Idefics3Config(text_config=text, vision_config=VIT))
    ids = torch.arange(3)[None]
    assert model.eval()(input_ids=ids).logits.isfinite().all()
    with pytest.raises(AttributeError, match="gradient_checkpointing"):
        model.train()(input_ids=ids)
    reason = "reads `gradient_checkpointing` in training, which OPTModel has not"
    with pytest.raises(AssemblyError, match=reason):
        assemble(folder, tower, None, prove=False, **FUSION)
    with pytest.raises(AssemblyError, match=reason):
        assembled_blueprint(folder, tower, torch.float32, fusion_name="pixel-shuffle-linear")


@pytest.mark.parametrize("kind", ["clip-vision", "dinov2", "vit", "mobilenet-v2"])
def test_other_towers_are_refused(kind: str, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(AssemblyError, match="Idefics3 cannot use it|takes towers that return tokens"):
        assemble(tiny / "llama", tiny_tower(kind, tmp_path / "tower"), None, prove=False, **FUSION)


def test_grids_that_the_class_gets_wrong() -> None:
    wrong = [grid for grid in range(2, 49) if not keeps_positions(grid)]
    assert wrong == [19, 25, 29, 31, 38, 40, 41, 43, 47]


def test_a_grid_with_wrong_positions_is_refused(tiny: Path, tmp_path: Path) -> None:
    model = hf.SiglipVisionModel(hf.SiglipVisionConfig(**{**VIT, "image_size": 50, "patch_size": 2}))
    model.save_pretrained(tmp_path)
    hf.ViTImageProcessorPil(size={"height": 50, "width": 50}).save_pretrained(tmp_path)
    for build in (assemble, assembled_blueprint):
        third: Any = None if build is assemble else torch.float32
        with pytest.raises(AssemblyError, match="25 x 25 the positions of others"):
            build(tiny / "llama", tmp_path, third, fusion_name="pixel-shuffle-linear", factor=5)


@pytest.mark.slow
def test_trained_merged_and_verified(tiny: Path, tower: Path, tmp_path: Path) -> None:
    recipe = values(tiny, tmp_path)
    recipe["model"] |= {"tower": str(tower), "fusion": "pixel-shuffle-linear"}
    recipe["data"] = {"packing": "shared", "features": "memory"}
    quiet = Reporter(quiet=True)
    train(load_recipe(None, (), recipe).recipe, tmp_path / "run", quiet)
    result = merge_run(tmp_path / "run", tmp_path / "merged", quiet)
    assert result["model_class"] == "Idefics3ForConditionalGeneration"
    report = verify_folder(tmp_path / "merged", tmp_path / "run", quiet)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
