"""Writes tower and projector of a LLaVA as llama.cpp's `mmproj`, every tensor once, and reads it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lockadapt.errors import AssemblyError, VerificationError
from lockadapt.exports.gguf.tower import (
    ACTIVATIONS,
    Colours,
    feature_layer,
    projector_names,
    tower_names,
    zero_biases,
)
from lockadapt.models.sources import some

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def write_mmproj(model: Any, colours: Colours, path: Path, outtype: str) -> dict[str, Any]:
    """Writes tower and projector.

    Args:
        model: a LLaVA that `tower_refusal` accepts.
        colours: from `measure_colours`.
        path: file to write.
        outtype: of the matrices, `f32`, `f16` or `bf16`. Biases, norms, positions and patches stay float32.

    Returns:
        `{"projector": "mlp", "mmproj_tensors": how many, "feature_layer": blocks that are run}`.

    Raises:
        AssemblyError: a tensor has no place in the graph, or its values none in `outtype`.
        VerificationError: the file does not hold what was written.
    """
    config = model.config
    blocks = feature_layer(config)
    tensors = _tensors(model, blocks)
    _write(
        config,
        colours,
        blocks,
        {name: _stored(name, t, outtype) for name, t in tensors.items()},
        path,
        outtype,
    )
    _read_back(tensors, path, outtype)
    return {"projector": "mlp", "mmproj_tensors": len(tensors), "feature_layer": blocks}


def _tensors(model: Any, blocks: int) -> dict[str, Tensor]:
    """What goes into the file, by the name that it has there."""
    vision = model.config.vision_config
    tower = model.model.vision_tower.state_dict()
    projector = model.model.multi_modal_projector.state_dict()
    gguf_names, left_out = tower_names(
        tower, blocks, square_ffn=vision.hidden_size == vision.intermediate_size
    )
    bridge = projector_names(projector)
    unknown = [*(set(tower) - set(gguf_names) - left_out), *(set(projector) - set(bridge))]
    if unknown:
        raise AssemblyError(
            f"llama.cpp's LLaVA graph has no place for {some(unknown)}", fix="please report this"
        )
    tensors = {gguf_names[name]: tower[name] for name in gguf_names} | {
        bridge[n]: projector[n] for n in bridge
    }
    if len(tensors) != len(gguf_names) + len(bridge):
        raise AssemblyError("two tensors have one name in the mmproj file", fix="please report this")
    rows = {name: tensor.shape[0] for name, tensor in tensors.items()}
    return tensors | zero_biases(bridge, rows)


def _stored(name: str, tensor: Tensor, outtype: str) -> Tensor:
    """In the dtype that it is kept in, on the CPU."""
    matrix = tensor.ndim == 2 and not name.startswith("v.position_embd")
    stored = tensor.detach().cpu().to(DTYPES[outtype] if matrix else torch.float32).contiguous()
    if not bool(stored.isfinite().all()):
        raise AssemblyError(f"values of {name} are not finite in {outtype}", fix="use --outtype f32 or bf16")
    return stored


def _write(
    config: Any, colours: Colours, blocks: int, tensors: dict[str, Tensor], path: Path, outtype: str
) -> None:
    from gguf import GGMLQuantizationType, GGUFType, GGUFWriter, LlamaFileType

    kinds = {
        torch.float32: GGMLQuantizationType.F32,
        torch.float16: GGMLQuantizationType.F16,
        torch.bfloat16: GGMLQuantizationType.BF16,
    }
    files = {
        "f32": LlamaFileType.ALL_F32,
        "f16": LlamaFileType.MOSTLY_F16,
        "bf16": LlamaFileType.MOSTLY_BF16,
    }
    vision = config.vision_config
    writer = GGUFWriter(path, arch="clip")
    writer.add_type(GGUFType.MMPROJ)
    writer.add_file_type(files[outtype])
    writer.add_description("vision tower and projector, written by lockadapt")
    for key, flag in {"text_encoder": False, "vision_encoder": True, "llava_projector": True}.items():
        writer.add_bool(f"clip.has_{key}", flag)
    writer.add_string("clip.projector_type", "mlp")
    for key, number in {
        "embedding_length": vision.hidden_size,
        "feed_forward_length": vision.intermediate_size,
        "attention.head_count": vision.num_attention_heads,
        "block_count": blocks,
        "projection_dim": config.get_text_config().hidden_size,
        "image_size": colours.side,
        "patch_size": vision.patch_size,
    }.items():
        writer.add_uint32(f"clip.vision.{key}", number)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", vision.layer_norm_eps)
    # Without it clip.cpp takes the last block but one, counted in this file.
    writer.add_array("clip.vision.feature_layer", [blocks])
    writer.add_array("clip.vision.image_mean", list(colours.mean))
    writer.add_array("clip.vision.image_std", list(colours.std))
    if flag_name := ACTIVATIONS[vision.hidden_act]:
        writer.add_bool(flag_name, True)
    for name, tensor in tensors.items():
        kind = kinds[tensor.dtype]
        data = tensor.view(torch.uint8) if tensor.dtype == torch.bfloat16 else tensor
        writer.add_tensor(name, data.numpy(), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _read_back(tensors: dict[str, Tensor], path: Path, outtype: str) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    stored = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    if set(stored) != set(tensors):
        raise VerificationError(
            f"the file lacks or adds {some(set(stored) ^ set(tensors))}",
            where=path.name,
            fix="please report this",
        )
    for name, tensor in tensors.items():
        expected = _stored(name, tensor, outtype).float().numpy()
        data = dequantize(stored[name].data, stored[name].tensor_type)
        if data.shape != expected.shape or not np.array_equal(data, expected):
            raise VerificationError(
                f"{name} is not in the file as it was written", where=path.name, fix="please report this"
            )
