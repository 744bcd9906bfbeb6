"""The key dialect that llama.cpp's converter reads."""

from __future__ import annotations

import pytest

from lockadapt.exports.gguf.key_layout import nested


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "model.vision_tower.encoder.layers.0.mlp.fc1.bias",
            "model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias",
        ),
        ("vision_tower.embeddings.class_embedding", "vision_tower.vision_model.embeddings.class_embedding"),
        ("model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias", None),
        ("model.vision_tower.patch_conv.weight", None),
        ("model.vision_model.encoder.layers.0.mlp.fc1.bias", None),
        ("model.multi_modal_projector.linear_1.weight", None),
    ],
)
def test_only_flattened_towers_get_their_level_back(name: str, expected: str | None) -> None:
    assert nested(name) == (expected or name)
