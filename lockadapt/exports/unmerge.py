"""Takes an adapter out of a merged folder again, and proves that the base came back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lockadapt.console import Reporter
from lockadapt.errors import VerificationError
from lockadapt.exports.stock_folder import copy_configs, local_folder
from lockadapt.exports.weights.adapter import as_matrix
from lockadapt.exports.weights.changes import LowRank, Rows, WeightUpdate, Whole
from lockadapt.exports.weights.merge_weights import Weighted, all_changes, write_changes
from lockadapt.exports.weights.names import RowRange, meta_model, read_names
from lockadapt.exports.weights.shards import Layout, read_layout
from lockadapt.files import new_folder, ordinary_permissions, require_new

PIECE = 1 << 22
"""Values that are compared at once."""


@dataclass(frozen=True)
class _Weights:
    """A folder's tensors by stock name, read when they are asked for."""

    layout: Layout
    keys: Mapping[str, str]
    parts: Mapping[str, tuple[str, ...]]
    fused: Mapping[str, RowRange]

    @staticmethod
    def of(folder: Path) -> _Weights:
        layout = read_layout(folder)
        names = read_names(meta_model(folder), layout.by_key(), str(folder))
        keys = {name: key for key, name in names.stock.items()}
        # What has no key of its own, or shares one, goes by the key: a stack's experts, fused projections.
        parts: dict[str, tuple[str, ...]] = {key: (part.name,) for key, part in names.experts.items()}
        parts |= {part.key: tuple(names.held_by(part.key)) for part in names.fused.values()}
        return _Weights(layout, {**keys, **{key: key for key in parts}}, parts, names.fused)

    def slice_of(self, name: str) -> Any:
        """What safetensors reads parts of; the tensor itself of a parameter that shares a key."""
        part = self.fused.get(name)
        shard, stored = self.layout.by_key()[part.key if part is not None else self.keys[name]]
        with safe_open(shard.path, "pt") as file:
            held = file.get_slice(stored.key)
            return held if part is None else held[part.first : part.last]


def unmerge(
    merged: Path, adapters: Sequence[Weighted], base: str, output: Path, reporter: Reporter
) -> dict[str, Any]:
    """Writes a merged folder's base: sums are subtracted in float32, trained tensors are the base's again.

    Two roundings lie between a base and what comes back, for each sum: that of the merge and that of the
    subtraction.

    Args:
        merged: a stock folder with these adapters in it.
        adapters: as they were merged, with their weights.
        base: stock folder or Hub id; each tensor is compared with it.
        output: a new folder; it appears only if the base came back.
        reporter: told of progress.

    Returns:
        `{"output", "tensors", "identical", "max_abs_weight_diff", "max_roundings"}`: how many tensors are the
        base's bit for bit, and the largest difference of a value, in roundings of the stored dtype too.

    Raises:
        VerificationError: a value differs by more than two roundings: not this base, not this adapter or
            another weight.
    """
    require_new(output, what="unmerging")
    source = local_folder(base)
    original = _Weights.of(source)
    changes = {
        name: [_undone(name, change, original) for change in changes_of]
        for name, changes_of in all_changes(source, adapters, {}).items()
    }
    with new_folder(output, what="unmerging") as folder:
        reporter.note("subtracting")
        write_changes(merged, folder, changes)
        copy_configs(merged, folder)
        ordinary_permissions(folder)
        reporter.note("comparing with the base")
        report = _compare(_Weights.of(folder), original, _Weights.of(merged), changes, str(folder))
    return {"output": str(output), **report}


def _undone(name: str, change: WeightUpdate, original: _Weights) -> WeightUpdate:
    if isinstance(change, LowRank) and change.magnitude is None:
        return dataclasses.replace(change, scale=-change.scale)
    stored = original.slice_of(name)
    if isinstance(change, Rows):
        return Rows(change.ids, torch.stack([stored[row] for row in change.ids]))
    return Whole(as_matrix(stored[:]))


def _compare(
    restored: _Weights,
    original: _Weights,
    merged: _Weights,
    changes: Mapping[str, Sequence[WeightUpdate]],
    where: str,
) -> dict[str, Any]:
    if restored.keys.keys() != original.keys.keys():
        raise VerificationError("base and merged folder have other tensors", where=where, fix=_FIX)
    identical, largest, roundings = 0, 0.0, 0.0
    for name in original.keys:
        difference, steps = 0.0, 0.0
        sums = max(len(changes.get(part, ())) for part in original.parts.get(name, (name,)))
        for mine, wanted, between in zip(
            *(_pieces(weights, name) for weights in (restored, original, merged)), strict=True
        ):
            if mine.shape != wanted.shape or mine.dtype != wanted.dtype:
                raise VerificationError("has another shape or dtype in the base", where=name, fix=_FIX)
            if not torch.equal(mine, wanted):
                gap = (mine.double() - wanted.double()).abs()
                size = torch.maximum(between.abs(), wanted.abs())
                # Sums of several adapters may be larger on the way than before and after.
                size = size if sums < 2 else size.amax().expand_as(size)
                difference = max(difference, float(gap.max()))
                steps = max(steps, float((gap / _rounding(size)).max()))
        identical += difference == 0.0
        if not steps <= 2.0 * sums:
            raise VerificationError(
                f"the base did not come back: a value differs by {difference:.3g}, {steps:.3g} roundings",
                where=f"{where}: {name}",
                fix=_FIX,
            )
        largest, roundings = max(largest, difference), max(roundings, steps)
    return {
        "tensors": len(original.keys),
        "identical": identical,
        "max_abs_weight_diff": largest,
        "max_roundings": roundings,
    }


_FIX = "name the base, the adapters and the weights that the folder was merged from"


def _pieces(weights: _Weights, name: str) -> Any:
    """A tensor in pieces of rows, so that memory stays small."""
    stored = weights.slice_of(name)
    shape = stored.get_shape()
    if not shape:
        yield stored[:]
        return
    row = 1
    for size in shape[1:]:
        row *= size
    step = max(1, PIECE // max(1, row))
    for first in range(0, shape[0], step):
        yield stored[first : first + step]


def _rounding(size: Tensor) -> Tensor:
    """Half the step between neighbouring values of this size in their dtype, float64."""
    limits = torch.finfo(size.dtype)
    return (size.double().clamp_min(limits.tiny)).log2().floor().exp2() * limits.eps / 2
