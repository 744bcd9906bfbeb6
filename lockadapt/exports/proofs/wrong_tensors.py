"""Names the tensors of a folder that are not what merging the run would write, and how they came to be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from lockadapt.architectures import layout_of
from lockadapt.architectures.base import component_of
from lockadapt.errors import VerificationError
from lockadapt.exports.stock_folder import BaseMode, MergePlan, plan_merge
from lockadapt.exports.weights.adapter import as_matrix
from lockadapt.exports.weights.changes import LowRank
from lockadapt.exports.weights.names import Names, meta_model, read_names, stored_values
from lockadapt.exports.weights.shards import Layout, read_layout
from lockadapt.models.sources import some
from lockadapt.runs.run import Run

NOT_MERGED, TWICE = "the adapter is not merged into", "the adapter is merged twice into"
FROZEN, OTHER = "other values than the base's, although they are frozen, are in", "not what was trained is in"
FLOAT32 = 1e-6
"""Share of a tensor's norm that the order of sums in float32 may move."""
ROUNDING = 0.5
"""Roundings by which a norm may move.

Measured on random matrices in bfloat16: 0.21 where a sum is rounded once, 0.30 where
what is added was rounded before."""


def wrong_tensors(run: Run, folder: Path, base: BaseMode) -> list[str]:
    """Compares every tensor of a folder with the run's base and what the run changes of it.

    A tensor may differ by roundings of the coarsest dtype of folder and run. Of a tensor that the run
    changes, the nearest of three is looked for: the trained one, the base's, and the base's with the change
    added twice; so that a change below a rounding is told as well.

    Args:
        run: a finished run.
        folder: a stock folder, its keys in any dialect that Transformers reads.
        base: of a quantized run, which base the folder was merged on.

    Returns:
        What is wrong, a sentence a kind, with the names that the Transformers class has for the tensors.
    """
    plan, mine = plan_merge(run, base=base), read_layout(folder)
    try:
        names = read_names(meta_model(folder), mine.by_key(), str(folder))
    except VerificationError:
        return []  # keys that are missing or too many; whoever loads the folder says so
    layout = layout_of(plan.model)
    kinds: dict[str, list[str]] = defaultdict(list)
    for name, stored, original in _pairs(plan, mine, names):
        if kind := _kind(plan, name, stored, original, _share(stored.dtype, run.dtype)):
            kinds[kind].append(f"{name} ({component_of(name, layout)})" if kind == FROZEN else name)
    return [f"{kind} {some(held)}" for kind, held in kinds.items()]


def _pairs(plan: MergePlan, mine: Layout, names: Names) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, tensor of the folder and of the base, where both have it in one shape."""
    stored_at = plan.layout.by_key()
    for shard in mine.shards:
        with safe_open(shard.path, "pt") as opened:
            for held in shard.tensors:
                parts = names.held_by(held.key)
                for name in parts or [names.stock.get(held.key)]:
                    originals = stored_values(plan.names, stored_at, name) if name is not None else []
                    if name is None or not originals or not originals[0].is_floating_point():
                        continue
                    original = originals[0]
                    tensor = opened.get_tensor(held.key)
                    if name in parts:
                        tensor = tensor[parts[name].first : parts[name].last]
                    if tensor.shape == original.shape:
                        yield name, tensor, original


def _kind(plan: MergePlan, name: str, stored: Tensor, original: Tensor, share: float) -> str | None:
    """What is wrong with a tensor, or None."""
    group = [name, *plan.names.group(name)]
    changes = next((plan.changes[other] for other in group if other in plan.changes), ())
    how = next((plan.requantized[other] for other in group if other in plan.requantized), None)
    matrix = as_matrix(original)
    rows = len(matrix)
    if how is None:
        start = matrix.float()
    else:
        start = how.rows(matrix, 0, how.prepare(lambda first, last: matrix[first:last], rows, rows))
    trained = start.clone()
    for change in changes:
        change.apply(trained, 0)
    actual = as_matrix(stored).float()
    if torch.equal(actual, trained.to(stored.dtype).float()):
        return None  # rounding may have taken most of the change away, but that is how it is merged
    distance, norm = float((actual - trained).norm()), float(trained.norm())
    if not torch.equal(start, trained):
        if float((actual - start).norm()) < distance:
            return NOT_MERGED
        summed = all(isinstance(change, LowRank) for change in changes)
        if summed and float((actual - (2 * trained - start)).norm()) < distance:
            return TWICE
    if distance <= share * norm:
        return None
    return OTHER if changes or how is not None else FROZEN


def _share(stored: torch.dtype, trained: torch.dtype) -> float:
    """Share of its norm by which a tensor may differ."""
    coarsest = max(torch.finfo(stored).eps, torch.finfo(trained).eps)
    return FLOAT32 if coarsest == torch.finfo(torch.float32).eps else ROUNDING * coarsest
