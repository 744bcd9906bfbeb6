"""A SigLIP tower at another image size: positions interpolated once, as its forward would each time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lockadapt.errors import AssemblyError
from lockadapt.models.quiet import quiet
from lockadapt.models.sources import tolerance
from lockadapt.models.towers import LoadedTower


@torch.no_grad()
def at_size(vision: LoadedTower, side: int, seed: int = 0) -> LoadedTower:
    """Fits a tower to square images of `side` pixels; unchanged if made for them, or without a size.

    Only towers with one position a patch and nothing else (SigLIP) are changed: the table becomes what the
    tower's own `interpolate_pos_encoding` gives, and its config says so, so that stock classes rebuild it. In
    place.

    Args:
        vision: the tower, loaded.
        side: in pixels.
        seed: of the pixels that both are compared on.

    Returns:
        The tower at that size.

    Raises:
        AssemblyError: the side is no multiple of the patch, or the new tower differs from the interpolating
            one.
    """
    tower: Any = vision.model
    config = tower.config
    if not can_change(tower) or config.image_size == side:
        return vision
    table, patch = tower.embeddings.position_embedding, config.patch_size
    if side % patch:
        raise AssemblyError(
            f"{side} pixels are no multiple of the patch, {patch}",
            where=vision.source.name,
            fix=f"give an `image_size` that is a multiple of {patch}",
        )
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(1, 3, side, side, generator=generator).to(tower.device, tower.dtype)
    with quiet():
        expected = tower(values, interpolate_pos_encoding=True).last_hidden_state
    embeddings, count = tower.embeddings, (side // patch) ** 2
    empty = torch.empty(1, count, table.embedding_dim, dtype=table.weight.dtype, device=table.weight.device)
    rows = embeddings.interpolate_pos_encoding(empty, side, side)[0]
    embeddings.position_embedding = nn.Embedding.from_pretrained(rows.clone(), freeze=True)
    embeddings.image_size, config.image_size = side, side
    embeddings.num_patches = embeddings.num_positions = count
    embeddings.position_ids = torch.arange(count, device=rows.device).expand(1, -1)
    with quiet():
        features = tower(values).last_hidden_state
    difference = float((features - expected).abs().max())
    if not difference <= tolerance(tower.dtype, expected):
        raise AssemblyError(
            f"at {side} pixels the tower differs by {difference:.3g} from itself with interpolated positions",
            where=vision.source.name,
            fix="leave `image_size` out",
        )
    return replace(vision, model=tower)


def can_change(tower: Any) -> bool:
    """Whether a tower, with weights or without, has one position a patch and nothing else."""
    table = getattr(getattr(tower, "embeddings", None), "position_embedding", None)
    side, patch = (getattr(tower.config, name, None) for name in ("image_size", "patch_size"))
    if not (isinstance(table, nn.Embedding) and isinstance(side, int) and isinstance(patch, int)):
        return False
    return table.num_embeddings == (side // patch) ** 2
