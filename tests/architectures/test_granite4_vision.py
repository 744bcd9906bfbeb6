"""Granite 4 Vision: windows of queries before CLIP and SigLIP, proved, calibrated, kept, packed, trained, merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, Granite4VisionForConditionalGeneration

from lockadapt.architectures import architecture_of
from lockadapt.architectures.assemble import Assembled, assemble
from lockadapt.architectures.blueprint import assembled_blueprint
from lockadapt.architectures.calibrate import embedding_rms
from lockadapt.architectures.features import image_arguments, kept_outputs
from lockadapt.architectures.granite4_vision import GRANITE4_VISION
from lockadapt.architectures.granite4_vision.windows import downsample_rate
from lockadapt.architectures.kept import RaggedFeatures
from lockadapt.architectures.suggest import holdings
from lockadapt.console import Reporter
from lockadapt.errors import AssemblyError, VerificationError
from lockadapt.exports.merge import merge_run
from lockadapt.exports.verify import verify_folder
from lockadapt.recipe.read import load_recipe
from lockadapt.training.loop import train
from tests.support.parity import WAYS, Way, assert_parity
from tests.support.runs import values
from tests.support.tiny import tiny_llm, tiny_tower

SHOWN = [Image.effect_noise(size, 90).convert("RGB") for size in ((64, 64), (40, 90), (90, 30), (9, 9))]
GIVEN: Any = {"fusion_name": "qformer", "dtype": "float32"}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tower("clip-wide", tmp_path_factory.mktemp("wide") / "clip-wide")


@pytest.fixture(scope="module")
def made(tiny: Path, wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Assembled:
    output = tmp_path_factory.mktemp("granite") / "base"
    return assemble(tiny / "llama", wide, output, calibration_images=SHOWN, max_tiles=4, **GIVEN)


def batch_of(made: Assembled) -> dict[str, Any]:
    texts, shown = ["<image>yes"] * len(SHOWN), [[picture] for picture in SHOWN]
    return dict(made.processor(text=texts, images=shown, padding=True, return_tensors="pt"))


def test_it_is_proved_in_a_fresh_process(made: Assembled) -> None:
    assert architecture_of(made.model).model_class is GRANITE4_VISION.model_class
    assert made.report.proof.fresh_process
    assert made.report.proof.logit_difference < 1e-6
    assert made.report.proof.feature_difference == 0.0
    again, info = AutoModelForImageTextToText.from_pretrained(made.folder, output_loading_info=True)
    assert isinstance(again, Granite4VisionForConditionalGeneration)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert all(not parameter.any() for parameter in again.model.spatial_projectors.parameters())


@torch.no_grad()
def test_the_processor_counts_what_the_class_makes(made: Assembled) -> None:
    processor = AutoProcessor.from_pretrained(made.folder)
    for picture in SHOWN:
        batch = dict(processor(text=["<image>"], images=[[picture]], return_tensors="pt"))
        images = {name: batch[name] for name in ("pixel_values", "image_sizes")}
        ((_, packed),) = made.model.model.get_image_features(**images).deepstack_features
        assert len(packed[0]) == int((batch["input_ids"] == made.model.config.image_token_id).sum())


@torch.no_grad()
def test_tokens_are_as_large_as_words(made: Assembled) -> None:
    batch = batch_of(made)
    images = {name: batch[name] for name in ("pixel_values", "image_sizes")}
    ((_, packed),) = made.model.model.get_image_features(**images).deepstack_features
    size = float(torch.cat(packed).square().mean().sqrt())
    assert size == pytest.approx(embedding_rms(made.model), rel=0.25)


@torch.no_grad()
def test_kept_features_are_what_pixels_give(made: Assembled) -> None:
    batch = batch_of(made)
    settings = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    settings["suppress_tokens"] = [made.model.config.image_token_id]
    expected, written = made.model(**batch).logits, made.model.generate(**batch, **settings)
    records = kept_outputs(made.model, {name: batch.pop(name) for name in ("pixel_values", "image_sizes")})
    assert not isinstance(records, torch.Tensor)
    assert [record.facts["tiles"] for record in records] == [(5,), (4,), (4,), (2,)]
    features = RaggedFeatures.joined(records)
    torch.testing.assert_close(made.model(**batch, **image_arguments(made.model, features)).logits, expected)
    again = made.model.generate(**batch, **image_arguments(made.model, features), **settings)
    assert torch.equal(again, written)


@pytest.mark.parametrize(("way", "quantization"), WAYS)
def test_a_step_is_the_stock_forwards(way: Way, quantization: str, made: Assembled, tmp_path: Path) -> None:
    gradients = assert_parity(made.folder or Path(), tmp_path, way, quantization)
    trained = {name.rpartition("layerwise_projectors.")[2] for name in gradients}
    assert any("image_newline" in name for name in gradients)
    assert any(name.endswith("query") for name in trained)
    assert not any("spatial" in name for name in gradients)


def test_blueprint_has_the_same_shapes(made: Assembled, tiny: Path, wide: Path) -> None:
    planned = assembled_blueprint(
        tiny / "llama", wide, torch.float32, fusion_name="qformer", max_tiles=4
    ).model.state_dict()
    assert {name: tensor.shape for name, tensor in made.model.state_dict().items()} == {
        name: tensor.shape for name, tensor in planned.items()
    }


@pytest.mark.parametrize(
    ("llm", "tower"), [("llama-tied", "siglip-wide"), ("mistral", "clip-wide"), ("qwen2", "siglip-wide")]
)
def test_other_sources(llm: str, tower: str, tmp_path: Path) -> None:
    sources = tiny_llm(llm, tmp_path / "llm"), tiny_tower(tower, tmp_path / "tower")
    result = assemble(*sources, None, prove=False, **GIVEN)
    assert isinstance(result.model, Granite4VisionForConditionalGeneration)
    assert result.report.proof.logit_difference < 1e-6


@pytest.mark.parametrize(
    ("llm", "tower", "message"),
    [
        ("llama", "clip-vision", "CLIPVisionModel is 24 channels wide, no multiple of 64"),
        ("qwen3", "clip-wide", "Qwen3ForCausalLM is no plain Llama: it has self_attn.k_norm.weight"),
        ("gpt2", "clip-wide", "GPT2LMHeadModel is no plain Llama"),
        ("gemma", "clip-wide", "text-only logits differ from the source's"),
    ],
)
def test_what_it_cannot_hold(llm: str, tower: str, message: str, tmp_path: Path) -> None:
    sources = tiny_llm(llm, tmp_path / "llm"), tiny_tower(tower, tmp_path / "tower")
    with pytest.raises((AssemblyError, VerificationError), match=message):
        assemble(*sources, None, prove=False, **GIVEN)


def test_queries_stand_in_rows_and_columns(tiny: Path, wide: Path) -> None:
    assert [downsample_rate(*pair) for pair in ((24, 6), (16, 6), (27, 6), (4, 2), (4, 4))] == [
        *("2/8", "3/8", "2/9", "2/4", "4/4"),
    ]
    with pytest.raises(AssemblyError, match="which 5 of them cannot be") as raised:
        assemble(tiny / "llama", wide, None, queries=5, prove=False, **GIVEN)
    assert raised.value.fix == "set model.queries=4 or 9"
    made = assemble(tiny / "llama", wide, None, queries=9, prove=False, **GIVEN)
    ids = made.processor(text=["<image>"], images=[[SHOWN[0]]], return_tensors="pt")["input_ids"]
    # The whole image, one tile, and a newline behind each of its rows.
    assert int((ids == made.model.config.image_token_id).sum()) == 9 + 9 + 3


def test_the_class_follows_from_the_tower(tiny: Path, wide: Path, tmp_path: Path) -> None:
    vit = tiny_tower("vit", tmp_path / "vit")
    classes = [
        next(entry.model_class for entry in holdings(tiny / "llama", tower) if entry.fusion == "qformer")
        for tower in (vit, wide)
    ]
    assert classes == ["Blip2ForConditionalGeneration", "Granite4VisionForConditionalGeneration"]


def test_recipe_trains_merges_and_verifies(tiny: Path, wide: Path, tmp_path: Path) -> None:
    recipe = values(tiny, tmp_path)
    recipe["model"] |= {"tower": str(wide), "fusion": "qformer"}
    recipe["data"] = {"features": "memory"}
    quiet = Reporter(quiet=True)
    train(load_recipe(None, (), recipe).recipe, tmp_path / "run", quiet)
    proof = merge_run(tmp_path / "run", tmp_path / "merged", quiet)
    assert not proof["missing_keys"]
    assert not proof["unexpected_keys"]
    assert proof["max_abs_logit_diff"] < 1e-4
    verify_folder(tmp_path / "merged", tmp_path / "run", quiet)
