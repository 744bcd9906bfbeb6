"""Aya Vision: assembled and proved, calibrated, kept features, packed, trained, merged and verified by stock classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, AyaVisionForConditionalGeneration

from lockadapt.architectures import architecture_of
from lockadapt.architectures.assemble import Assembled, assemble
from lockadapt.architectures.aya_vision import AYA_VISION
from lockadapt.architectures.blocks import block_linears
from lockadapt.architectures.blueprint import assembled_blueprint
from lockadapt.architectures.calibrate import embedding_rms
from lockadapt.architectures.features import image_arguments, projector_input
from lockadapt.console import Reporter
from lockadapt.errors import AssemblyError
from lockadapt.exports.merge import merge_run
from lockadapt.exports.verify import verify_folder
from lockadapt.recipe.read import load_recipe
from lockadapt.training.loop import train
from lockadapt.tuning.quantize import is_quantized, load_quantized
from tests.support.parity import WAYS, Way, assert_parity
from tests.support.runs import values
from tests.support.tiny import tiny_llm, tiny_tower

COLOURS = [Image.new("RGB", (8, 8), colour) for colour in ("red", "white", "blue", "green")]


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Assembled:
    output = tmp_path_factory.mktemp("aya") / "base"
    return assemble(
        tiny / "llama",
        tiny / "clip-vision",
        output,
        fusion_name="pixel-shuffle",
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
    assert architecture_of(made.model) is AYA_VISION
    assert made.report.proof.fresh_process
    assert made.report.fusion == "pixel-shuffle"
    assert made.report.calibrated_on == len(COLOURS)
    again, info = AutoModelForImageTextToText.from_pretrained(made.folder, output_loading_info=True)
    assert isinstance(again, AyaVisionForConditionalGeneration)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert AutoProcessor.from_pretrained(made.folder).patch_size == 2 * made.report.tower_facts.patch_size


def test_four_patches_become_one_token(made: Assembled) -> None:
    ids = batch_of(made)["input_ids"][0]
    assert int((ids == made.model.config.image_token_id).sum()) == made.report.tower_facts.tokens // 4


def test_calibrated_tokens_are_as_large_as_words(made: Assembled) -> None:
    pixels = made.processor.image_processor(images=COLOURS, return_tensors="pt")["pixel_values"]
    projector, seen = made.model.model.multi_modal_projector, []
    handle = projector.linear_1.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        tokens = projector(projector_input(made.model, pixels))
    handle.remove()
    assert float(tokens.square().mean().sqrt()) == pytest.approx(embedding_rms(made.model), rel=1e-3)
    inside = projector.linear_1(seen[0]).detach().flatten(0, -2)
    assert float(inside.mean(0).abs().max()) < 1e-3, "the mean behind the LayerNorm is folded away"


@torch.no_grad()
def test_kept_features_are_what_pixels_give(made: Assembled) -> None:
    batch, settings = batch_of(made), {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    expected, written = made.model(**batch).logits, made.model.generate(**batch, **settings)
    features = projector_input(made.model, batch.pop("pixel_values"))
    given = image_arguments(made.model, features)
    torch.testing.assert_close(made.model(**batch, **given).logits, expected)
    given = image_arguments(made.model, features)
    assert torch.equal(made.model.generate(**batch, **given, **settings), written)
    swapped = image_arguments(made.model, features.flip(0))
    assert not torch.allclose(made.model(**batch, **swapped).logits, expected)


@pytest.mark.parametrize(("way", "quantization"), WAYS)
def test_a_step_is_the_stock_forwards(way: Way, quantization: str, made: Assembled, tmp_path: Path) -> None:
    gradients = assert_parity(made.folder or Path(), tmp_path, way, quantization)
    assert any("multi_modal_projector.layernorm" in name for name in gradients)


def test_only_the_blocks_are_quantized(made: Assembled) -> None:
    model, _ = load_quantized(made.folder or Path(), "nf4", torch.float32)
    assert {name for name, part in model.named_modules() if is_quantized(part)} == set(block_linears(model))


def test_blueprint_has_the_same_shapes(made: Assembled, tiny: Path) -> None:
    planned = assembled_blueprint(
        tiny / "llama", tiny / "clip-vision", torch.float32, fusion_name="pixel-shuffle"
    ).model.state_dict()
    assert {name: tensor.shape for name, tensor in made.model.state_dict().items()} == {
        name: tensor.shape for name, tensor in planned.items()
    }


@pytest.mark.parametrize("llm", ["gpt2", "gemma3-text", "qwen3"])
@pytest.mark.parametrize("tower", ["siglip-vision", "dinov2", "vit"])
def test_other_sources(llm: str, tower: str, tmp_path: Path) -> None:
    sources = tiny_llm(llm, tmp_path / "llm"), tiny_tower(tower, tmp_path / "tower")
    result = assemble(*sources, None, fusion_name="pixel-shuffle", dtype="float32", prove=False)
    assert architecture_of(result.model) is AYA_VISION


@pytest.mark.parametrize(
    ("tower", "factor", "message"),
    [
        ("dinov2-registers", 2, "merges patches only"),
        ("clip-vision", 3, "not divided by a factor of 3"),
        ("mobilenet-v2", 2, "takes towers that return tokens"),
    ],
)
def test_what_cannot_be_merged(tower: str, factor: int, message: str, tiny: Path, tmp_path: Path) -> None:
    source = tiny_tower(tower, tmp_path / "tower")
    with pytest.raises(AssemblyError, match=message):
        assemble(
            tiny / "llama",
            source,
            None,
            fusion_name="pixel-shuffle",
            factor=factor,
            dtype="float32",
            prove=False,
        )


@pytest.mark.slow
def test_trained_merged_and_verified(tiny: Path, tmp_path: Path) -> None:
    recipe = values(tiny, tmp_path)
    recipe["model"] |= {"fusion": "pixel-shuffle", "factor": 2}
    recipe["data"] = {"packing": "shared", "features": "memory"}
    quiet = Reporter(quiet=True)
    train(load_recipe(None, (), recipe).recipe, tmp_path / "run", quiet)
    result = merge_run(tmp_path / "run", tmp_path / "merged", quiet)
    assert result["model_class"] == "AyaVisionForConditionalGeneration"
    report = verify_folder(tmp_path / "merged", tmp_path / "run", quiet)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
