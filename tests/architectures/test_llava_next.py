"""LLaVA-NeXT: images whole and in tiles, proved, calibrated, kept as they come, packed, trained, merged, verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaNextForConditionalGeneration

from lockadapt.architectures import architecture_of
from lockadapt.architectures.assemble import Assembled, assemble
from lockadapt.architectures.blueprint import assembled_blueprint
from lockadapt.architectures.calibrate import embedding_rms
from lockadapt.architectures.choose import Wish, choices
from lockadapt.architectures.features import image_arguments, kept_outputs
from lockadapt.architectures.kept import RaggedFeatures
from lockadapt.architectures.llava_next import LLAVA_NEXT
from lockadapt.console import Reporter
from lockadapt.errors import AssemblyError
from lockadapt.exports.merge import merge_run
from lockadapt.exports.verify import verify_folder
from lockadapt.recipe.models import ModelSection
from lockadapt.recipe.read import load_recipe
from lockadapt.training.loop import train
from tests.support.parity import WAYS, Way, assert_parity
from tests.support.runs import values
from tests.support.tiny import SIDE, tiny_llm, tiny_tower

SIZES = [(64, 64), (40, 90), (90, 30), (9, 9), (33, 64), (200, 20)]
SHOWN = [Image.effect_noise(size, 90).convert("RGB") for size in SIZES]
TILES: Any = {"fusion_name": "tiles", "dtype": "float32"}
SOURCES = {"llm": "llm", "tower": "tower"}


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Assembled:
    output = tmp_path_factory.mktemp("next") / "base"
    return assemble(tiny / "llama", tiny / "clip-vision", output, calibration_images=SHOWN, **TILES)


def batch_of(made: Assembled, pictures: list[Image.Image]) -> dict[str, Any]:
    texts, shown = ["<image>yes"] * len(pictures), [[picture] for picture in pictures]
    return dict(made.processor(text=texts, images=shown, padding=True, return_tensors="pt"))


def test_it_is_proved_in_a_fresh_process(made: Assembled) -> None:
    assert architecture_of(made.model) is LLAVA_NEXT
    assert made.report.proof.fresh_process
    assert made.report.proof.logit_difference == made.report.proof.feature_difference == 0.0
    again, info = AutoModelForImageTextToText.from_pretrained(made.folder, output_loading_info=True)
    assert isinstance(again, LlavaNextForConditionalGeneration)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


@torch.no_grad()
def test_the_processor_counts_what_the_class_makes(made: Assembled) -> None:
    processor = AutoProcessor.from_pretrained(made.folder)
    for picture in SHOWN:
        batch = dict(processor(text=["<image>"], images=[[picture]], return_tensors="pt"))
        features = made.model.model.get_image_features(batch["pixel_values"], batch["image_sizes"])
        count = int((batch["input_ids"] == made.model.config.image_token_id).sum())
        assert len(features.pooler_output[0]) == count


def test_the_whole_image_is_the_towers_own_square(made: Assembled, tiny: Path) -> None:
    side = {"height": SIDE, "width": SIDE}
    own = hf.CLIPImageProcessorPil(size=side, crop_size=side, do_center_crop=False)
    expected = own(images=SHOWN, return_tensors="pt")["pixel_values"]
    assert torch.equal(batch_of(made, SHOWN)["pixel_values"][:, 0], expected)


@torch.no_grad()
def test_projected_tokens_and_newline_are_as_large_as_words(made: Assembled) -> None:
    size = embedding_rms(made.model)
    batch = batch_of(made, SHOWN)
    records = kept_outputs(made.model, {name: batch[name] for name in ("pixel_values", "image_sizes")})
    assert not isinstance(records, torch.Tensor)
    tokens = made.model.model.multi_modal_projector(torch.cat([record.levels["tiles"] for record in records]))
    assert float(tokens.square().mean().sqrt()) == pytest.approx(size, rel=0.1)
    assert float(made.model.model.image_newline.square().mean().sqrt()) == pytest.approx(size, rel=0.5)


@torch.no_grad()
def test_kept_features_are_what_pixels_give(made: Assembled) -> None:
    batch = batch_of(made, SHOWN)
    settings = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    settings["suppress_tokens"] = [made.model.config.image_token_id]
    expected, written = made.model(**batch).logits, made.model.generate(**batch, **settings)
    records = kept_outputs(made.model, {name: batch.pop(name) for name in ("pixel_values", "image_sizes")})
    assert not isinstance(records, torch.Tensor)
    assert [record.facts["tiles"] for record in records] == [(5,), (4,), (4,), (2,), (5,), (5,)]
    features = RaggedFeatures.joined(records)
    torch.testing.assert_close(made.model(**batch, **image_arguments(made.model, features)).logits, expected)
    again = made.model.generate(**batch, **image_arguments(made.model, features), **settings)
    assert torch.equal(again, written)


@pytest.mark.parametrize(("way", "quantization"), WAYS)
def test_a_step_is_the_stock_forwards(way: Way, quantization: str, made: Assembled, tmp_path: Path) -> None:
    gradients = assert_parity(made.folder or Path(), tmp_path, way, quantization)
    assert any(name.endswith("image_newline") for name in gradients)


def test_blueprint_has_the_same_shapes(made: Assembled, tiny: Path) -> None:
    planned = assembled_blueprint(
        tiny / "llama", tiny / "clip-vision", torch.float32, fusion_name="tiles"
    ).model.state_dict()
    assert {name: tensor.shape for name, tensor in made.model.state_dict().items()} == {
        name: tensor.shape for name, tensor in planned.items()
    }


@pytest.mark.parametrize("llm", ["gpt2", "gemma3-text", "qwen3"])
@pytest.mark.parametrize("tower", ["siglip-vision", "dinov2", "vit"])
def test_other_sources(llm: str, tower: str, tmp_path: Path) -> None:
    sources = tiny_llm(llm, tmp_path / "llm"), tiny_tower(tower, tmp_path / "tower")
    result = assemble(*sources, None, prove=False, **TILES)
    assert architecture_of(result.model) is LLAVA_NEXT


@pytest.mark.parametrize(
    ("tower", "message"),
    [("dinov2-registers", "joins tiles patch by patch"), ("mobilenet-v2", "takes towers that return tokens")],
)
def test_towers_that_cannot_be_tiled(tower: str, message: str, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(AssemblyError, match=message):
        assemble(tiny / "llama", tiny_tower(tower, tmp_path / "tower"), None, prove=False, **TILES)


def test_more_tiles_than_the_context_holds(tiny: Path) -> None:
    with pytest.raises(AssemblyError, match="an image in 4 x 4 tiles takes 288 tokens"):
        assemble(tiny / "llama", tiny / "clip-vision", None, prove=False, grid=[(1, 1), (4, 4)], **TILES)


def test_the_recipe_says_which_grids_there_are(made: Assembled) -> None:
    def grids(**keys: Any) -> tuple[tuple[int, int], ...]:
        section = ModelSection(**SOURCES, fusion="tiles", **keys)
        return choices(Wish("tiles", None, section.tile_grid, section.max_tiles))[0].grids

    assert grids() == ((1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (1, 4), (2, 2), (4, 1))
    assert grids(max_tiles=2) == ((1, 1), (1, 2), (2, 1))
    assert grids(grid=[[2, 2], [1, 3]]) == ((2, 2), (1, 3))
    expected = [[rows * SIDE, columns * SIDE] for rows, columns in grids()]
    assert made.model.config.image_grid_pinpoints == expected
    assert made.processor.image_processor.image_grid_pinpoints == expected


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"fusion": "tiles", "grid": [[2, 2]], "max_tiles": 3}, "leave one of the two out"),
        ({"fusion": "mlp", "grid": [[2, 2]]}, "makes one square of every image"),
        ({"fusion": "pixel-shuffle", "max_tiles": 3}, "makes one square of every image"),
        ({"fusion": "tiles", "factor": 2}, "makes a token of every patch"),
        ({"fusion": "tiles", "grid": [[2, 0]]}, "greater than 0"),
        ({"fusion": "tiles", "grid": [[2]]}, "at least 2 items"),
    ],
)
def test_keys_that_say_nothing_here(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelSection(**SOURCES, **keys)


@pytest.mark.slow
@pytest.mark.parametrize("features", ["memory", "disk", "none"])
def test_trained_merged_and_verified(features: str, tiny: Path, tmp_path: Path) -> None:
    recipe = values(tiny, tmp_path)
    recipe["model"] |= {"fusion": "tiles", "max_tiles": 3}
    recipe["data"] = {"packing": "shared", "features": features, "cache": str(tmp_path / "cache")}
    quiet = Reporter(quiet=True)
    train(load_recipe(None, (), recipe).recipe, tmp_path / "run", quiet)
    result = merge_run(tmp_path / "run", tmp_path / "merged", quiet)
    assert result["model_class"] == "LlavaNextForConditionalGeneration"
    report = verify_folder(tmp_path / "merged", tmp_path / "run", quiet)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
