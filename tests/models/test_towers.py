"""Towers that no stock class can hold are refused before anything is built, each with its own reason."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import save_file

from lockadapt.architectures.assemble import assemble
from lockadapt.errors import AssemblyError, SetupError
from lockadapt.models.preprocessing import square_processor
from lockadapt.models.sources import Source, loading
from lockadapt.models.towers import TowerFacts, load_tower, probe_tower
from tests.support.tiny import CLIP_TEXT, SIDE, VIT, tiny_llm
from tests.support.zoo.base import _imports

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
        ("\nAModel requires the nowhere library but it was not found. `pip install nowhere`.", "nowhere"),
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


def test_what_a_package_lacks_is_named_where_the_package_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers says timm where timm is installed, but not torchvision, which it imports."""
    (tmp_path / "half_there.py").write_text("import what_it_imports\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SetupError, match="pip install what_it_imports"), loading(Source("x", True), "tower"):
        raise ImportError("AModel requires the half_there library. `pip install half_there`")


def timm_folder(name: str, folder: Path, **settings: Any) -> Any:
    """A folder as timm publishes its models, with a classifier, and timm's own model."""
    if missing := [package for package in ("torchvision", "timm") if not _imports(package)]:
        pytest.skip(f"needs {' and '.join(missing)}")
    timm = importlib.import_module("timm")
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    for tensor in model.buffers():  # the running statistics of norms
        if tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor))
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})
    pretrained = {"input_size": [3, 64, 64], "crop_pct": 0.9, "interpolation": "bicubic", **settings}
    config = {"architecture": name, "num_classes": 1000, "pretrained_cfg": pretrained}
    (folder / "config.json").write_text(json.dumps(config))
    return model


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_a_cnn_of_timm_is_a_tower(name: str, tmp_path: Path) -> None:
    colours = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    own = timm_folder(name, tmp_path / "tower", **colours)
    built = assemble(tiny_llm("llama", tmp_path / "llm"), tmp_path / "tower", dtype="float32", prove=True)
    assert type(built.model).__name__ == "FastVlmForConditionalGeneration"
    assert built.report.tower_facts.image_size == 64
    image = Image.new("RGB", (64, 64), (51, 102, 153))
    pixels = built.processor.image_processor(image, return_tensors="pt")["pixel_values"]
    wanted = [
        (value / 255 - m) / s
        for value, m, s in zip((51, 102, 153), colours["mean"], colours["std"], strict=True)
    ]
    torch.testing.assert_close(pixels.mean(dim=(0, 2, 3)), torch.tensor(wanted), rtol=0, atol=1e-5)
    noise = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        got = built.model.model.vision_tower(noise).last_hidden_state
        torch.testing.assert_close(got, own.forward_features(noise), rtol=1e-4, atol=1e-5)


def test_a_vit_of_timm_is_refused_with_its_reason(tmp_path: Path) -> None:
    timm_folder("test_vit", tmp_path / "tower", input_size=[3, 160, 160])
    with pytest.raises(AssemblyError, match="tokens as its last state, but feature maps"):
        measured(tmp_path / "tower")
