"""Trains the quickstart's vision tower from images alone: no text, no label, no question.

A small ViT sees half-hidden pictures of invented shapes and predicts, for every patch that it sees, what the pixels
around it look like: histograms of edge directions (as MaskFeat does, arXiv 2112.09133) and coarse colour histograms.
Both targets are computed from the picture itself.
"""

from __future__ import annotations

import colorsys
import math
import time
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from lockadapt.quickstart.drawing import COLOURS, SHAPES, Scene, Thing, draw
from lockadapt.quickstart.scenes import HELD_OUT, _background, _shade

SIDE, PATCH, WIDTH = 64, 16, 128
CELL, BINS, CONTEXT = 4, 6, 32  # pixels, edge directions, pixels around a patch's middle
CELLS = CONTEXT // CELL
EDGES = CELLS * CELLS * BINS
COLOUR_LEVELS = (-1.0, 0.0, 1.0)


def make_tower(folder: Path, seed: int, steps: int, pictures: int = 8000, batch: int = 64) -> float:
    """Trains a ViT and saves it with its image processor; gives the mean loss of the last 100 steps."""
    torch.manual_seed(seed)
    pool = picture_pool(Random(seed), pictures)
    config = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=3 * WIDTH,
        image_size=SIDE,
        patch_size=PATCH,
        hidden_act="gelu_pytorch_tanh",
    )
    model, head = ViTModel(config), nn.Linear(WIDTH, EDGES + 2 * len(COLOUR_LEVELS) ** 3)
    with torch.no_grad():
        model.embeddings.position_embeddings[:, 1:] = _places(SIDE // PATCH, WIDTH) * 0.5
    parameters = [*model.parameters(), *head.parameters()]
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "pooler" not in name]
    chosen = {id(p) for p in matrices}
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [p for p in parameters if id(p) not in chosen], 2e-3, betas=(0.9, 0.98), weight_decay=0.02
        ),
        torch.optim.Muon(matrices, 3e-3, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
    ]
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(
            o, o.param_groups[0]["lr"], total_steps=steps, pct_start=0.1, cycle_momentum=False
        )
        for o in optimizers
    ]
    start, last = time.monotonic(), []
    for step in range(1, steps + 1):
        loss = _loss(model, head, _augmented(pool[torch.randint(len(pool), (batch,))] / 127.5 - 1))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        last = [*last[-99:], loss.item()]
        if step % 100 == 0:
            print(
                f"  step {step}/{steps}  loss {sum(last) / len(last):.4f}  {time.monotonic() - start:.0f} s",
                flush=True,
            )
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return sum(last) / len(last)


def picture_pool(random: Random, count: int) -> Tensor:
    """Pictures (count, 3, side, side) uint8 of up to eight things; pairs that the quickstart holds out are left out."""
    arrays = [np.asarray(draw(_crowd(random)).resize((SIDE, SIDE), 2)) for _ in range(count)]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def targets(pixels: Tensor) -> Tensor:
    """What each patch has to predict, from pixels (n, 3, side, side) in [-1, 1]: (n, patches, edges + colours)."""
    across = F.pad(pixels, (1, 1, 0, 0), mode="replicate")
    across = across[..., 2:] - across[..., :-2]
    down = F.pad(pixels, (0, 0, 1, 1), mode="replicate")
    down = down[..., 2:, :] - down[..., :-2, :]
    strongest = (across**2 + down**2).argmax(1, keepdim=True)
    across, down = across.gather(1, strongest)[:, 0], down.gather(1, strongest)[:, 0]
    strength = ((across**2 + down**2).sqrt() - 0.25).clamp(min=0)  # pale backgrounds have no edges
    angle = torch.atan2(down, across) % math.pi / math.pi * BINS
    near = [(1 - ((angle - b + BINS / 2) % BINS - BINS / 2).abs()).clamp(min=0) for b in range(BINS)]
    edges = F.avg_pool2d(torch.stack([strength * n for n in near], 1), CELL)
    energy = F.avg_pool2d(F.pad((edges**2).sum(1, keepdim=True), (2, 2, 2, 2)), 5, stride=1)
    edges = edges / (energy + 2e-3).sqrt()
    margin = (CELLS - PATCH // CELL) // 2
    windows = F.unfold(F.pad(edges, (margin,) * 4), CELLS, stride=PATCH // CELL)
    return torch.cat([windows, _colour_histograms(pixels)], 1).transpose(1, 2)


def _colour_histograms(pixels: Tensor) -> Tensor:
    """Soft histograms over 3 x 3 x 3 colours, of each patch itself and of what surrounds it."""
    levels = torch.stack([(1 - (pixels - level).abs()).clamp(min=0) for level in COLOUR_LEVELS], 1)
    joint = levels[:, :, None, None, 0] * levels[:, None, :, None, 1] * levels[:, None, None, :, 2]
    fine = F.avg_pool2d(joint.flatten(1, 3), CELL)
    own = F.avg_pool2d(fine, PATCH // CELL)
    margin = (CELLS - PATCH // CELL) // 2
    around = F.avg_pool2d(F.pad(fine, (margin,) * 4, mode="replicate"), CELLS, stride=PATCH // CELL)
    return torch.cat([own, around], 1).flatten(2) * 3


def _loss(model: ViTModel, head: nn.Module, pixels: Tensor) -> Tensor:
    patches = (SIDE // PATCH) ** 2
    kept = int(patches * (1 - 0.5 * torch.rand(()).item()))
    seen = torch.rand(len(pixels), patches).argsort(1)[:, :kept, None]
    hidden = model.embeddings(pixels)
    hidden = torch.cat([hidden[:, :1], hidden[:, 1:].gather(1, seen.expand(-1, -1, WIDTH))], 1)
    for layer in model.layers:
        hidden = layer(hidden)
    predicted = head(hidden[:, 1:])
    with torch.no_grad():
        wanted = targets(pixels)
        wanted = wanted.gather(1, seen.expand(-1, -1, wanted.shape[-1]))
    edges = F.mse_loss(predicted[..., :EDGES], wanted[..., :EDGES])
    return 2 * edges + 12 * F.mse_loss(predicted[..., EDGES:], wanted[..., EDGES:])


def _augmented(pixels: Tensor) -> Tensor:
    if torch.rand(()) < 0.5:
        pixels = pixels.flip(-1)
    return pixels[:, torch.randperm(3)] if torch.rand(()) < 0.5 else pixels


def _crowd(random: Random) -> Scene:
    things: list[Thing] = []
    for _ in range(40):
        colour, shape = random.choice(list(COLOURS)), random.choice(SHAPES)
        if len(things) == 8 or (colour, shape) in HELD_OUT:
            continue
        size = random.uniform(0.11, random.choice((0.18, 0.18, 0.32)))
        x, y = (random.uniform(size, 1 - size) for _ in "xy")
        if all(math.hypot(t.x - x, t.y - y) > 1.1 * (t.size + size) + 0.01 for t in things):
            hue = colorsys.hsv_to_rgb(random.random(), random.random() ** 0.5, random.random() ** 0.6)
            free = (int(255 * hue[0]), int(255 * hue[1]), int(255 * hue[2]))
            shade = free if random.random() < 0.5 else _shade(random, colour)
            things.append(Thing(colour, shape, x, y, size, random.uniform(-15, 15), shade))
    return Scene(tuple(things), _background(random))


def _places(grid: int, width: int) -> Tensor:
    """Sines and cosines of row and column, (1, patches, width)."""
    waves = torch.outer(torch.arange(grid).float(), 1 / (10000 ** (torch.arange(width // 4) / (width // 4))))
    one = torch.cat([waves.sin(), waves.cos()], 1)
    both = torch.cat([one[:, None].expand(grid, grid, -1), one[None].expand(grid, grid, -1)], -1)
    return both.reshape(1, grid * grid, width)
