"""A SigLIP tower inside Janus computes what it computed; other towers are refused, saying why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as hf

from lockadapt.architectures.janus.siglip import janus_tower, janus_vision_config, prove_tower
from lockadapt.errors import AssemblyError
from tests.support.tiny import TOWERS, VIT

VALUES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def build(**changes: object) -> hf.SiglipVisionModel:
    torch.manual_seed(0)
    model = hf.SiglipVisionModel(hf.SiglipVisionConfig(**{**VIT, **changes})).eval()
    for parameter in model.parameters():  # fresh biases and norms are zeros and ones, which hides mix-ups
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("changes", [{}, {"vision_use_head": False}, {"hidden_act": "relu"}])
def test_same_features(changes: dict[str, object], tmp_path: Path) -> None:
    tower = build(**changes)
    with torch.no_grad():
        expected = tower(VALUES).last_hidden_state
    model = janus_tower(tower, 32, 2, "tower")
    with torch.no_grad():
        assert torch.equal(model(VALUES).last_hidden_state, expected)
    model.save_pretrained(tmp_path)
    again = hf.JanusVisionModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.allclose(again(VALUES).last_hidden_state, expected, atol=1e-6)
    assert again.config.num_image_tokens == 16


@pytest.mark.parametrize(("hidden", "inner"), [(1152, 4304), (24, 32), (768, 3072), (1000, 3333)])
def test_inner_width_survives_the_ratio(hidden: int, inner: int) -> None:
    config = hf.SiglipVisionConfig(**{**VIT, "hidden_size": hidden, "intermediate_size": inner})
    made = janus_vision_config(config, 32, 2, "tower")
    assert int(made.hidden_size * made.mlp_ratio) == inner


@pytest.mark.parametrize("kind", ["clip-vision", "vit", "dinov2", "convnext", "mobilenet-v2"])
def test_other_towers_are_refused(kind: str) -> None:
    with pytest.raises(AssemblyError, match="Janus") as error:
        janus_tower(TOWERS[kind]().eval(), 32, 2, "the tower")
    assert "SigLIP" in str(error.value)


def test_odd_sizes_are_refused() -> None:
    with pytest.raises(AssemblyError, match="patches of 7"):
        janus_tower(build(patch_size=7), 32, 2, "the tower")


def test_other_numbers_are_refused() -> None:
    tower = build()
    tower.post_layernorm.eps = 0.5
    with pytest.raises(AssemblyError, match="differ by"):
        prove_tower(tower, janus_tower(tower, 32, 2, "the tower"), VALUES, "the tower")
