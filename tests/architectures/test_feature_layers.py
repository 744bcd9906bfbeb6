"""Several hidden layers of the tower side by side: proved, kept, trained and merged in LLaVA and LLaVA-NeXT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageTextToText

from lockadapt.architectures.assemble import Assembled, assemble
from lockadapt.architectures.blueprint import assembled_blueprint
from lockadapt.architectures.features import kept_outputs
from lockadapt.console import Reporter
from lockadapt.errors import AssemblyError
from lockadapt.exports.merge import merge_run
from lockadapt.exports.verify import verify_folder
from lockadapt.recipe.read import load_recipe
from lockadapt.training.loop import train
from tests.support.parity import Way, assert_parity
from tests.support.runs import values
from tests.support.tiny import tiny_tower

LAYERS = [-2, 1]
SHOWN = [Image.effect_noise(size, 90).convert("RGB") for size in ((64, 64), (40, 90), (9, 9))]


@pytest.fixture(scope="module", params=["mlp", "tiles"])
def made(request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Assembled:
    return assemble(
        tiny / "llama",
        tiny / "clip-vision",
        tmp_path_factory.mktemp(request.param) / "base",
        fusion_name=request.param,
        feature_layer=LAYERS,
        dtype="float32",
        calibration_images=SHOWN,
    )


@torch.no_grad()
def test_the_projector_reads_the_layers_side_by_side(made: Assembled, tiny: Path) -> None:
    assert made.report.proof.fresh_process
    assert made.report.proof.feature_difference == 0.0
    assert made.model.config.vision_feature_layer == LAYERS
    texts, shown = ["<image>"] * len(SHOWN), [[picture] for picture in SHOWN]
    batch = made.processor(text=texts, images=shown, padding=True, return_tensors="pt")
    images = {name: batch[name] for name in ("pixel_values", "image_sizes") if name in batch}
    kept = kept_outputs(made.model, images)
    if not isinstance(kept, torch.Tensor):
        kept = torch.stack([record.levels["tiles"][:16] for record in kept])
    squares = batch["pixel_values"].unflatten(0, (len(SHOWN), -1))[:, 0].reshape(len(SHOWN), -1)
    squares = squares[:, : 3 * 32 * 32].unflatten(1, (3, 32, 32))
    states = AutoModel.from_pretrained(tiny / "clip-vision")(squares, output_hidden_states=True).hidden_states
    torch.testing.assert_close(kept, torch.cat([states[2][:, 1:], states[1][:, 1:]], dim=-1))


@pytest.mark.parametrize("way", ["packed", "cached"])
def test_a_step_is_the_stock_forwards(way: Way, made: Assembled, tmp_path: Path) -> None:
    assert_parity(made.folder or Path(), tmp_path, way, "none")


def test_blueprint_has_the_same_shapes(made: Assembled, tiny: Path) -> None:
    planned = assembled_blueprint(
        tiny / "llama",
        tiny / "clip-vision",
        torch.float32,
        fusion_name=made.report.fusion,
        feature_layer=LAYERS,
    ).model.state_dict()
    assert {name: tensor.shape for name, tensor in made.model.state_dict().items()} == {
        name: tensor.shape for name, tensor in planned.items()
    }


def test_recipe_trains_merges_and_verifies(tiny: Path, tmp_path: Path) -> None:
    recipe = values(tiny, tmp_path)
    recipe["model"]["feature_layer"] = LAYERS
    recipe["data"] = {"features": "memory"}
    quiet = Reporter(quiet=True)
    train(load_recipe(None, (), recipe).recipe, tmp_path / "run", quiet)
    proof = merge_run(tmp_path / "run", tmp_path / "merged", quiet)
    assert not proof["missing_keys"]
    assert proof["max_abs_logit_diff"] < 1e-4
    verify_folder(tmp_path / "merged", tmp_path / "run", quiet)
    merged: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert merged.config.vision_feature_layer == LAYERS
    assert merged.model.multi_modal_projector.linear_1.in_features == 2 * 24


@pytest.mark.parametrize(
    ("tower", "fusion", "message"),
    [
        ("clip-vision", "pixel-shuffle", "AyaVisionForConditionalGeneration reads one hidden layer"),
        ("vit", "qformer", "Blip2ForConditionalGeneration reads one hidden layer"),
        ("convnext", "mlp", "returns one feature map, and model.feature_layer lists several"),
    ],
)
def test_who_reads_one_layer_says_so(
    tower: str, fusion: str, message: str, tiny: Path, tmp_path: Path
) -> None:
    source = tiny_tower(tower, tmp_path / "tower")
    with pytest.raises(AssemblyError, match=message):
        assemble(tiny / "llama", source, None, fusion_name=fusion, feature_layer=LAYERS, prove=False)


def test_a_layer_that_the_tower_lacks(tiny: Path) -> None:
    with pytest.raises(AssemblyError, match="no hidden layer -8"):
        assemble(tiny / "llama", tiny / "clip-vision", None, feature_layer=[-2, -8], prove=False)
