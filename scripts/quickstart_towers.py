"""The quickstart's tower as a ViT and as a CLIP, for the classes that hold no SigLIP.

The weights are the SigLIP tower's under the other class's names. A class token that stands for nothing, and
CLIP's norm before its blocks, change what they compute: the same training, from images alone, goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from quickstart_pictures import picture_pool
from quickstart_targets import targets, weighted_error, wide
from quickstart_tower import PATCH, SIDE, WIDTH, optimizers, pixels, seen_patches
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipVisionModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

ATTENTION = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "out_proj"}


def make_vit(folder: Path, seed: int, steps: int, source: Path, pictures: int = 12000) -> float:
    """Makes a ViT of the SigLIP tower in `source` and trains it on; returns the mean loss of 100 steps."""
    siglip = SiglipVisionModel.from_pretrained(source)
    model = ViTModel(ViTConfig(**_shape(siglip)), add_pooling_layer=False)
    names = {
        "layernorm": "post_layernorm",
        "embeddings.patch_embeddings.projection": "embeddings.patch_embedding",
    }
    for number in range(len(siglip.encoder.layers)):
        ours, theirs = f"layers.{number}", f"encoder.layers.{number}"
        names |= {f"{ours}.attention.{a}": f"{theirs}.self_attn.{b}" for a, b in ATTENTION.items()}
        names |= {f"{ours}.layernorm_before": f"{theirs}.layer_norm1"}
        names |= {f"{ours}.layernorm_after": f"{theirs}.layer_norm2"}
        names |= {f"{ours}.mlp.fc{n}": f"{theirs}.mlp.fc{n}" for n in "12"}
    weights = _renamed(model, siglip, names)
    weights["embeddings.position_embeddings"][0, 1:] = siglip.embeddings.position_embedding.weight.detach()
    model.load_state_dict(weights)
    loss = _train(model, model.embeddings, model.layers, model.layernorm, (seed, steps, pictures))
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}, resample=2).save_pretrained(folder)
    return loss


def make_clip(folder: Path, seed: int, steps: int, source: Path, pictures: int = 12000) -> float:
    """Makes a CLIP vision model of the SigLIP tower in `source`, as `make_vit`."""
    siglip = SiglipVisionModel.from_pretrained(source)
    model = CLIPVisionModel(CLIPVisionConfig(**_shape(siglip)))
    names = {
        name: name for name, _ in siglip.named_modules() if name.startswith(("encoder.layers.", "post_"))
    }
    weights = _renamed(model, siglip, names)
    weights["embeddings.patch_embedding.weight"] = siglip.embeddings.patch_embedding.weight.detach().clone()
    weights["embeddings.position_embedding.weight"][1:] = siglip.embeddings.position_embedding.weight.detach()
    model.load_state_dict(weights)

    def embed(values: Tensor) -> Tensor:
        return model.pre_layrnorm(model.embeddings(values))

    def last(hidden: Tensor) -> Tensor:
        return F.layer_norm(hidden, (WIDTH,))

    loss = _train(model, embed, model.encoder.layers, last, (seed, steps, pictures))
    model.save_pretrained(folder)
    side = {"height": SIDE, "width": SIDE}
    half = [0.5] * 3
    CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size=side, resample=2, image_mean=half, image_std=half
    ).save_pretrained(folder)
    return loss


def _shape(siglip: SiglipVisionModel) -> dict[str, object]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size")
    names += ("patch_size", "hidden_act", "layer_norm_eps")
    return {name: getattr(siglip.config, name) for name in names}


def _renamed(model: nn.Module, siglip: nn.Module, names: dict[str, str]) -> dict[str, Tensor]:
    """The model's own weights, with those of modules that SigLIP has under other names; no class token."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    theirs = siglip.state_dict()
    for name in weights:
        path, _, leaf = name.rpartition(".")
        if path in names:
            weights[name] = theirs[f"{names[path]}.{leaf}"].clone()
        elif "position" in name or "cls" in name or "class" in name:
            weights[name].zero_()
    return weights


def _train(
    model: nn.Module,
    embed: Callable[[Tensor], Tensor],
    layers: nn.ModuleList,
    last: Callable[[Tensor], Tensor],
    how: tuple[int, int, int],
) -> float:
    """As `quickstart_tower.make_tower` trains; `how`: seed, steps, pictures."""
    seed, steps, pictures = how
    torch.manual_seed(seed)
    start, losses = time.monotonic(), [0.0]
    pool = picture_pool(Random(seed), pictures, SIDE)
    wanted = torch.cat([targets(pixels(part)).half() for part in pool.split(500)])
    heads = nn.ModuleList(nn.Linear(WIDTH, wide()) for _ in range(2))
    stepping, schedules = optimizers(model, heads, steps)
    for step in range(1, steps + 1):
        rows = torch.randint(len(pool), (64,))
        seen = seen_patches(len(rows), (SIDE // PATCH) ** 2)
        aim = wanted[rows].float()
        aim = aim.gather(1, seen.expand(-1, -1, aim.shape[-1]))
        hidden = embed(pixels(pool[rows]))
        patches = hidden[:, 1:].gather(1, seen.expand(-1, -1, WIDTH))
        hidden = torch.cat([hidden[:, :1], patches], 1)
        for layer in layers[:-1]:
            hidden = layer(hidden, None)
        before = F.layer_norm(hidden, (WIDTH,))[:, 1:]
        top = last(layers[-1](hidden, None))[:, 1:]
        loss = weighted_error(heads[0](top), aim) + 0.5 * weighted_error(heads[1](before), aim)
        loss.backward()
        nn.utils.clip_grad_norm_([*model.parameters(), *heads.parameters()], 1.0)
        for optimizer, schedule in zip(stepping, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        losses = [*losses[-99:], loss.item()]
        if step % 100 == 0:
            mean = sum(losses) / len(losses)
            print(f"  step {step}/{steps}  loss {mean:.4f}  {time.monotonic() - start:.0f} s", flush=True)
    return sum(losses) / len(losses)
