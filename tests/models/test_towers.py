"""Towers that no stock class can hold are refused before anything is built, each with its own reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from lockadapt.errors import AssemblyError, SetupError
from lockadapt.models.preprocessing import square_processor
from lockadapt.models.sources import Source, loading
from lockadapt.models.towers import TowerFacts, load_tower, probe_tower
from tests.support.tiny import CLIP_TEXT, SIDE, VIT

MAPS = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]}
SAM = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
    "mlp_dim": 32,
    "global_attn_indexes": [1],
    "output_channels": 16,
}
LEVIT = {
    "hidden_sizes": [16, 24, 32],
    "num_attention_heads": [2, 2, 2],
    "depths": [1, 1, 1],
    "key_dim": [8, 8, 8],
}
TWO = {"text_config": CLIP_TEXT, "vision_config": VIT}

REFUSED: dict[str, tuple[Callable[[], Any], int, str]] = {
    "pixtral": (
        lambda: hf.PixtralVisionModel(hf.PixtralVisionConfig(**VIT)),
        SIDE,
        "the features of 2 images as 1, in one row",
    ),
    "metaclip-2": (
        lambda: hf.MetaClip2VisionModel(hf.MetaClip2VisionConfig(**VIT)),
        SIDE,
        "AutoModel builds no model from a MetaClip2VisionConfig",
    ),
    "metaclip-2-two": (
        lambda: hf.MetaClip2Model(hf.MetaClip2Config(**TWO)),
        SIDE,
        "AutoModel builds no model from a MetaClip2VisionConfig",
    ),
    "vit-mae": (lambda: hf.ViTMAEModel(hf.ViTMAEConfig(**VIT)), SIDE, "hide patches at random"),
    "dinov3-convnext": (
        lambda: hf.DINOv3ConvNextModel(hf.DINOv3ConvNextConfig(**MAPS)),
        64,
        "tokens as its last state, but feature maps",
    ),
    "sam": (
        lambda: hf.SamModel(hf.SamConfig(vision_config=SAM)),
        SIDE,
        "has no SamVisionModel inside.*but SamVisionEncoder",
    ),
    "sam-vision": (
        lambda: hf.SamVisionModel(hf.SamVisionConfig(**SAM)),
        SIDE,
        "16 channels where its config says 24",
    ),
    "levit": (
        lambda: hf.LevitModel(hf.LevitConfig(image_size=64, **LEVIT)),
        64,
        "32 channels, and its config names no hidden_size",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_tower_is_refused_with_its_own_reason(kind: str, tmp_path: Path) -> None:
    build, side, reason = REFUSED[kind]
    torch.manual_seed(0)
    build().eval().save_pretrained(tmp_path)
    hf.ViTImageProcessorPil(size={"height": side, "width": side}).save_pretrained(tmp_path)
    with pytest.raises(AssemblyError, match=reason):
        measured(tmp_path)


def measured(folder: Path) -> TowerFacts:
    """What assembling does with a tower first."""
    tower = load_tower(folder, torch.float32)
    processor, _ = square_processor(tower.image_processor, None, str(folder))
    return probe_tower(tower, processor, -2)


@pytest.mark.parametrize(
    ("message", "package"),
    [
        ("\nTimmWrapperModel requires the timm library but it was not found. `pip install timm`.", "timm"),
        ("To use it, please run `pip install -U torchvision`.", "torchvision"),
    ],
)
def test_a_missing_package_is_named(message: str, package: str) -> None:
    with (
        pytest.raises(SetupError, match=f"not installed: {package}\n.*pip install {package}") as caught,
        loading(Source("somewhere", local=True), "tower"),
    ):
        raise ImportError(message)
    assert caught.value.exit_code != 1


def test_a_missing_module_is_named() -> None:
    with pytest.raises(SetupError, match="not installed: nowhere"), loading(Source("x", local=True), "tower"):
        import nowhere  # type: ignore[import-not-found] # noqa: F401
