"""Trains the quickstart's vision tower from images alone: no text, no label, no question.

A small SigLIP tower sees half-hidden pictures of invented shapes and predicts, for every patch that it sees,
what the pixels around it look like (`quickstart_targets.py`), computed from the picture itself. It is
predicted twice, by one matrix each: from what `post_layernorm` gives (what Janus reads) and from the last
layer but one (LLaVA's default).
"""

from __future__ import annotations

import time
from pathlib import Path
from random import Random

import torch
from quickstart_muon import Muon
from quickstart_pictures import picture_pool
from quickstart_targets import PATCH, targets, weighted_error, wide
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

SIDE, WIDTH = 64, 128


def make_tower(folder: Path, seed: int, steps: int, pictures: int = 12000, batch: int = 64) -> float:
    """Train a SigLIP tower and save it with its image processor; return the mean loss of 100 steps."""
    torch.manual_seed(seed)
    start, last = time.monotonic(), [0.0]
    pool = picture_pool(Random(seed), pictures, SIDE)
    wanted = torch.cat([targets(pixels(part)).half() for part in pool.split(500)])
    print(f"  {pictures} pictures after {time.monotonic() - start:.0f} s", flush=True)
    model = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=3 * WIDTH,
            image_size=SIDE,
            patch_size=PATCH,
            vision_use_head=False,
        )
    )
    with torch.no_grad():
        model.embeddings.position_embedding.weight.copy_(_places(SIDE // PATCH, WIDTH) * 0.5)
    heads = nn.ModuleList(nn.Linear(WIDTH, wide()) for _ in range(2))
    parameters = [*model.parameters(), *heads.parameters()]
    stepping, schedules = optimizers(model, heads, steps)
    for step in range(1, steps + 1):
        rows = torch.randint(len(pool), (batch,))
        loss = _loss(model, heads, pixels(pool[rows]), wanted[rows].float())
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer, schedule in zip(stepping, schedules, strict=True):
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
    SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}, resample=2).save_pretrained(folder)
    return sum(last) / len(last)


def pixels(pictures: Tensor) -> Tensor:
    """Pictures of 0 to 255 as the tower reads them, -1 to 1."""
    return pictures / 127.5 - 1


def _loss(model: SiglipVisionModel, heads: nn.ModuleList, pixels: Tensor, wanted: Tensor) -> Tensor:
    """Both layers' mean error on the patches that are seen: half of them at least."""
    seen = seen_patches(len(pixels), (SIDE // PATCH) ** 2)
    wanted = wanted.gather(1, seen.expand(-1, -1, wanted.shape[-1]))
    hidden = model.embeddings(pixels).gather(1, seen.expand(-1, -1, WIDTH))
    for layer in model.encoder.layers[:-1]:
        hidden = layer(hidden, None)
    last = model.post_layernorm(model.encoder.layers[-1](hidden, None))
    before = F.layer_norm(hidden, (WIDTH,))
    return weighted_error(heads[0](last), wanted) + 0.5 * weighted_error(heads[1](before), wanted)


def seen_patches(pictures: int, patches: int) -> Tensor:
    """Which patches of each picture are seen, as many of all, half of them at least: (pictures, seen, 1)."""
    kept = int(patches * (1 - 0.5 * torch.rand(()).item()))
    return torch.rand(pictures, patches).argsort(1)[:, :kept, None]


def optimizers(
    model: nn.Module, heads: nn.Module, steps: int
) -> tuple[list[torch.optim.Optimizer], list[torch.optim.lr_scheduler.OneCycleLR]]:
    """Muon for the layers' matrices, AdamW for all else; one cycle each."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "position" not in name]
    chosen = {id(p) for p in matrices}
    rest = [p for p in (*model.parameters(), *heads.parameters()) if id(p) not in chosen]
    both: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, 2e-3, betas=(0.9, 0.98), weight_decay=0.02),
        Muon(matrices, 3e-3, weight_decay=0.02),
    ]
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(
            o, o.param_groups[0]["lr"], total_steps=steps, pct_start=0.1, cycle_momentum=False
        )
        for o in both
    ]
    return both, schedules


def _places(grid: int, width: int) -> Tensor:
    """Sines and cosines of row and column, (patches, width)."""
    waves = torch.outer(torch.arange(grid).float(), 1 / (10000 ** (torch.arange(width // 4) / (width // 4))))
    axis = torch.cat([waves.sin(), waves.cos()], 1)
    both = torch.cat([axis[:, None].expand(grid, grid, -1), axis[None].expand(grid, grid, -1)], -1)
    return both.reshape(grid * grid, width)
