"""A ViT or DINOv2 as the vision tower of BLIP-2: the same function by other names, proved by running both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Blip2VisionConfig, Blip2VisionModel, Dinov2Model, ViTModel

from lockadapt.errors import AssemblyError
from lockadapt.models.quiet import quiet
from lockadapt.models.sources import some, tolerance


@dataclass(frozen=True)
class _Block:
    """What a class calls the parts of a block.

    Attributes:
        path: of block number `{}`.
        norms: before attention and before the MLP.
        scales: what the outputs of attention and MLP are multiplied with; empty: nothing.
    """

    path: str
    norms: tuple[str, str]
    scales: tuple[str, ...] = ()


BLOCKS: Mapping[type[Any], _Block] = {
    ViTModel: _Block("layers.{}", ("layernorm_before", "layernorm_after")),
    Dinov2Model: _Block(
        "encoder.layer.{}", ("norm1", "norm2"), ("layer_scale1.lambda1", "layer_scale2.lambda1")
    ),
}
UNUSED = ("pooler.", "embeddings.mask_token")
"""Behind or beside the last hidden state."""


def unfit_tower(tower: Any) -> str | None:
    """Why BLIP-2 cannot hold a tower as far as its class tells; None: it can. In words that follow "as"."""
    if type(tower) in BLOCKS:
        return None
    return (
        f"{type(tower).__name__} has no plain blocks behind a class token, as ViT and DINOv2 have (CLIP has "
        "a norm before its blocks, SigLIP no class token)"
    )


def blip2_tower(tower: Any, side: int, where: str) -> Any:
    """The stock `Blip2VisionModel` that computes what a ViT or DINOv2 computes at one image size.

    Queries, keys and values lie in one matrix; DINOv2's scales are multiplied into the matrices before them;
    positions are interpolated once, as the tower does at every forward.

    Args:
        tower: a vision model that `unfit_tower` lets pass, in evaluation mode, with weights or on the meta
            device.
        side: of its images, in pixels.
        where: names the tower in messages.

    Returns:
        A `Blip2VisionModel` in evaluation mode, frozen, in the tower's dtype; it shares the tower's memory.

    Raises:
        AssemblyError: its blocks have other parts.
    """
    names = BLOCKS[type(tower)]
    weights = tower.state_dict()
    config = tower.config
    taken: set[str] = set()

    def take(name: str) -> Tensor:
        taken.add(name)
        if name not in weights:
            raise _cannot(tower, f"no {name}", where)
        return weights[name]

    renamed = {
        "embeddings.class_embedding": take("embeddings.cls_token"),
        "embeddings.patch_embedding.weight": take("embeddings.patch_embeddings.projection.weight"),
        "embeddings.patch_embedding.bias": take("embeddings.patch_embeddings.projection.bias"),
        "embeddings.position_embedding": _positions(tower, take("embeddings.position_embeddings"), side),
        "post_layernorm.weight": take("layernorm.weight"),
        "post_layernorm.bias": take("layernorm.bias"),
    }
    kinds = ("weight", "bias") if config.qkv_bias else ("weight",)
    for number in range(config.num_hidden_layers):
        old, new = f"{names.path.format(number)}.", f"encoder.layers.{number}."
        for kind in kinds:
            parts = [take(f"{old}attention.{part}_proj.{kind}") for part in "qkv"]
            renamed[f"{new}self_attn.qkv.{kind}"] = torch.cat(parts)
        scales: list[Tensor | None] = [take(old + scale) for scale in names.scales]
        for kind in ("weight", "bias"):
            for norm, name in zip(("layer_norm1", "layer_norm2"), names.norms, strict=True):
                renamed[f"{new}{norm}.{kind}"] = take(f"{old}{name}.{kind}")
            renamed[f"{new}mlp.fc1.{kind}"] = take(f"{old}mlp.fc1.{kind}")
            for scale, name, source in zip(
                scales or [None, None],
                ("self_attn.projection", "mlp.fc2"),
                ("attention.o_proj", "mlp.fc2"),
                strict=True,
            ):
                renamed[f"{new}{name}.{kind}"] = _scaled(take(f"{old}{source}.{kind}"), scale)
    left = [name for name in weights if name not in taken and not name.startswith(UNUSED)]
    if left:
        raise _cannot(tower, f"weights that it has no place for ({some(left)})", where)
    with torch.device("meta"), quiet():
        model: Any = Blip2VisionModel(_config(config, renamed, side))
    model.load_state_dict(renamed, assign=True)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def prove_tower(tower: Any, model: Any, values: Tensor, where: str) -> None:
    """Checks that a tower and what was made of it return the same for pixels (images, 3, side, side).

    Args:
        tower: the source.
        model: made of it by `blip2_tower`.
        values: pixel values.
        where: the tower, for messages.

    Raises:
        AssemblyError: they do not, or all images look alike, as where the checkpoint lacks the last norm.
    """
    values = values.to(tower.device, tower.dtype)
    with quiet():
        expected = tower(values).last_hidden_state
        features = model(values).last_hidden_state
    difference = float((expected - features).abs().max()) if expected.shape == features.shape else math.nan
    if not difference <= tolerance(tower.dtype, expected):
        raise _cannot(tower, f"features that differ by up to {difference:.3g} in BLIP-2", where)
    if torch.equal(expected[0], expected[1]):
        raise AssemblyError(
            "the tower's last hidden state is the same for all images, so its checkpoint lacks the last norm",
            where=where,
            fix="use a complete vision checkpoint",
        )


def _config(config: Any, weights: Mapping[str, Tensor], side: int) -> Blip2VisionConfig:
    made = Blip2VisionConfig(
        hidden_size=config.hidden_size,
        intermediate_size=int(weights["encoder.layers.0.mlp.fc1.weight"].shape[0]),
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        image_size=side,
        patch_size=config.patch_size,
        hidden_act=config.hidden_act,
        layer_norm_eps=config.layer_norm_eps,
        qkv_bias=config.qkv_bias,
    )
    made.dtype = config.dtype
    return made


def _scaled(tensor: Tensor, scale: Tensor | None) -> Tensor:
    """A matrix (out, in) or bias (out,) whose output is multiplied with a scale (out,)."""
    if scale is None:
        return tensor
    return tensor * (scale[:, None] if tensor.dim() == 2 else scale)


def _positions(tower: Any, table: Tensor, side: int) -> Tensor:
    """Position embeddings (1, 1 + patches, channels) at an image size, as the tower interpolates them."""
    patches = (side // tower.config.patch_size) ** 2
    if table.shape[1] == 1 + patches:
        return table
    empty = torch.empty(1, 1 + patches, table.shape[2], dtype=table.dtype, device=table.device)
    return tower.embeddings.interpolate_pos_encoding(empty, side, side).detach()


def _cannot(tower: Any, what: str, where: str) -> AssemblyError:
    return AssemblyError(
        f"{type(tower).__name__} has {what}, so BLIP-2 cannot use it as its tower",
        where=where,
        fix="give a ViT or DINOv2 (without SwiGLU), or choose another fusion",
    )
