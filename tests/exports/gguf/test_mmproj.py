"""The mmproj file: every tensor once, equal, under the names and numbers that clip.cpp reads."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lockadapt.errors import AssemblyError, VerificationError
from lockadapt.exports.gguf import mmproj as module
from lockadapt.exports.gguf.mmproj import write_mmproj
from tests.support.gguf import COLOURS, llava
from tests.support.tiny import SIDE

gguf = pytest.importorskip("gguf", reason="needs the gguf package (pip install 'lockadapt[gguf]')")


def read(path: Path) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any], Any]:
    """Tensors as float32, and values by key."""
    from gguf.quants import dequantize

    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    return tensors, {name: field.contents() for name, field in reader.fields.items()}, reader


@pytest.mark.parametrize(
    ("kind", "layer", "blocks"), [("clip", -2, 2), ("siglip", -2, 2), ("siglip", -1, 3), ("clip", 1, 1)]
)
def test_every_tensor_is_there_once_and_equal(kind: str, layer: int, blocks: int, tmp_path: Path) -> None:
    model = llava(kind, layer=layer)
    report = write_mmproj(model, COLOURS, tmp_path / "mmproj.gguf", "f32")
    tensors, keys, _ = read(tmp_path / "mmproj.gguf")
    tower, bridge = model.model.vision_tower.state_dict(), model.model.multi_modal_projector.state_dict()
    left = dict(tensors)

    def same(name: str, source: torch.Tensor) -> None:
        np.testing.assert_array_equal(left.pop(name), source.numpy(), err_msg=name)

    same("v.patch_embd.weight", tower["embeddings.patch_embedding.weight"])
    same("v.position_embd.weight", tower["embeddings.position_embedding.weight"])
    if kind == "clip":
        same("v.class_embd", tower["embeddings.class_embedding"])
        for part in ("weight", "bias"):
            same(f"v.pre_ln.{part}", tower[f"pre_layrnorm.{part}"])
    else:
        same("v.patch_embd.bias", tower["embeddings.patch_embedding.bias"])
    for block in range(blocks):
        for part in ("weight", "bias"):
            for ours, theirs in {
                "ln1": "layer_norm1",
                "attn_q": "self_attn.q_proj",
                "attn_k": "self_attn.k_proj",
                "attn_v": "self_attn.v_proj",
                "attn_out": "self_attn.out_proj",
                "ln2": "layer_norm2",
                "ffn_up": "mlp.fc1",
                "ffn_down": "mlp.fc2",
            }.items():
                same(f"v.blk.{block}.{ours}.{part}", tower[f"encoder.layers.{block}.{theirs}.{part}"])
    for part in ("weight", "bias"):
        same(f"mm.0.{part}", bridge[f"linear_1.{part}"])
        same(f"mm.2.{part}", bridge[f"linear_2.{part}"])
    assert not left, "a LayerNorm behind the feature layer would be applied"
    assert report == {"projector": "mlp", "mmproj_tensors": len(tensors), "feature_layer": blocks}
    assert keys["clip.projector_type"] == "mlp"
    assert keys["clip.vision.block_count"] == blocks
    assert keys["clip.vision.feature_layer"] == [blocks]
    assert keys["general.architecture"] == "clip"


def test_numbers_are_those_of_tower_and_processor(tmp_path: Path) -> None:
    model = llava("siglip", layer_norm_eps=1e-4)
    write_mmproj(model, COLOURS, tmp_path / "mmproj.gguf", "f32")
    keys = read(tmp_path / "mmproj.gguf")[1]
    numbers = {
        "embedding_length": 24,
        "feed_forward_length": 32,
        "attention.head_count": 2,
        "projection_dim": 32,
        "image_size": SIDE,
        "patch_size": 8,
    }
    assert {key: keys[f"clip.vision.{key}"] for key in numbers} == numbers
    assert keys["clip.vision.attention.layer_norm_epsilon"] == pytest.approx(1e-4)
    assert keys["clip.vision.image_mean"] == pytest.approx(COLOURS.mean)
    assert keys["clip.vision.image_std"] == pytest.approx(COLOURS.std)


@pytest.mark.parametrize(
    ("activation", "asked"),
    [
        ("quick_gelu", None),
        ("gelu_pytorch_tanh", "clip.use_gelu"),
        ("gelu", "clip.use_gelu"),
        ("silu", "clip.use_silu"),
    ],
)
def test_activation_of_the_tower(activation: str, asked: str | None, tmp_path: Path) -> None:
    write_mmproj(llava("siglip", hidden_act=activation), COLOURS, tmp_path / "mmproj.gguf", "f32")
    keys = read(tmp_path / "mmproj.gguf")[1]
    assert [key for key in ("clip.use_gelu", "clip.use_silu") if keys.get(key)] == ([asked] if asked else [])


@pytest.mark.parametrize("outtype", ["f16", "bf16"])
def test_only_matrices_are_rounded(outtype: str, tmp_path: Path) -> None:
    model = llava("clip")
    write_mmproj(model, COLOURS, tmp_path / "mmproj.gguf", outtype)
    tensors, _, reader = read(tmp_path / "mmproj.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert {name for name, kind in kinds.items() if kind != "F32"} == {
        *(f"mm.{number}.weight" for number in (0, 2)),
        *(
            f"v.blk.{b}.{part}.weight"
            for b in (0, 1)
            for part in ("attn_q", "attn_k", "attn_v", "attn_out", "ffn_up", "ffn_down")
        ),
    }
    source = model.model.multi_modal_projector.linear_1.weight.detach()
    np.testing.assert_array_equal(tensors["mm.0.weight"], source.to(module.DTYPES[outtype]).float().numpy())


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    model = llava("siglip")
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight[0, 0] = 1e6
    with pytest.raises(AssemblyError, match="mm.2.weight are not finite in f16"):
        write_mmproj(model, COLOURS, tmp_path / "mmproj.gguf", "f16")
    write_mmproj(model, COLOURS, tmp_path / "mmproj.gguf", "bf16")


def test_square_feed_forward_goes_by_the_old_names(tmp_path: Path) -> None:
    """clip.cpp exchanges `ffn_up` and `ffn_down` where `ffn_down` reads as many values as the model is wide."""
    model = llava("siglip", intermediate_size=24)
    write_mmproj(model, COLOURS, tmp_path / "mmproj.gguf", "f32")
    tensors = read(tmp_path / "mmproj.gguf")[0]
    block = model.model.vision_tower.encoder.layers[0].mlp
    np.testing.assert_array_equal(tensors["v.blk.0.ffn_down.weight"], block.fc1.weight.detach().numpy())
    np.testing.assert_array_equal(tensors["v.blk.0.ffn_up.bias"], block.fc2.bias.detach().numpy())


def test_projector_without_biases_gets_zeros(tmp_path: Path) -> None:
    model = llava("siglip")
    bridge = model.model.multi_modal_projector
    bridge.linear_1.bias = bridge.linear_2.bias = None
    write_mmproj(model, COLOURS, tmp_path / "mmproj.gguf", "f32")
    tensors = read(tmp_path / "mmproj.gguf")[0]
    assert tensors["mm.0.bias"].shape == (bridge.linear_1.out_features,)
    assert not tensors["mm.0.bias"].any()
    assert not tensors["mm.2.bias"].any()


@pytest.mark.parametrize("where", ["vision_tower", "multi_modal_projector"])
def test_a_tensor_without_a_place_stops_it(where: str, tmp_path: Path) -> None:
    model = llava("siglip")
    getattr(model.model, where).register_parameter("extra", torch.nn.Parameter(torch.ones(2)))
    with pytest.raises(AssemblyError, match="no place for extra"):
        write_mmproj(model, COLOURS, tmp_path / "mmproj.gguf", "f32")


def test_what_is_read_back_must_be_what_was_written(tmp_path: Path) -> None:
    model = llava("siglip")
    path = tmp_path / "mmproj.gguf"
    write_mmproj(model, COLOURS, path, "f32")
    tensors = module._tensors(model, 2)
    module._read_back(tensors, path, "f32")
    other = copy.deepcopy(tensors)
    other["mm.2.bias"][0] += 1
    with pytest.raises(VerificationError, match="mm.2.bias is not in the file"):
        module._read_back(other, path, "f32")
    del tensors["mm.0.bias"]
    with pytest.raises(VerificationError, match="adds mm.0.bias"):
        module._read_back(tensors, path, "f32")
