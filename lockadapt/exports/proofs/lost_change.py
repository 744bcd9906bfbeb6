"""How much of what an adapter changes is lost when merged weights are rounded to the folder's dtype."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from lockadapt.console import Reporter
from lockadapt.exports.stock_folder import BaseMode, plan_merge
from lockadapt.exports.weights.adapter import as_matrix
from lockadapt.exports.weights.changes import LowRank
from lockadapt.exports.weights.names import meta_model, read_names, stored_values
from lockadapt.exports.weights.shards import read_layout
from lockadapt.runs.run import Run

MATRICES = 12
"""That are looked at, spread over the LLM: the answer is a share, which a few tell as well as all."""
MUCH = 0.5
"""Share from which it is said: half of the change is noise by then."""


def lost_change(run: Run, folder: Path, base: BaseMode) -> float | None:
    """Measures the share of the adapter's change that rounding took, or replaced by noise.

    A weight moves by steps of its dtype only: in bfloat16, by 1/256 of itself. What an adapter adds is often
    less.

    Args:
        run: a finished run.
        folder: that it was merged into.
        base: of a quantized run, which base the folder was merged on.

    Returns:
        Root mean square of what is missing, divided by that of the change; 0: nothing. None: no matrix of the
        base was changed by adding, in a dtype that could be compared.
    """
    plan = plan_merge(run, base=base)
    added = [
        name
        for name, changes in plan.changes.items()
        if changes and all(isinstance(change, LowRank) for change in changes) and name not in plan.requantized
    ]
    chosen = set(added[:: -(-len(added) // MATRICES) or 1])
    stored_at, mine = plan.layout.by_key(), read_layout(folder)
    names = read_names(meta_model(folder), mine.by_key(), str(folder))
    missing = changed = 0.0
    for shard in mine.shards:
        with safe_open(shard.path, "pt") as opened:
            for key in (held.key for held in shard.tensors if names.stock.get(held.key) in chosen):
                name = names.stock[key]
                originals = stored_values(plan.names, stored_at, name)
                if not originals or not originals[0].is_floating_point():
                    continue
                start = as_matrix(originals[0]).float()
                exact = start.clone()
                for change in plan.changes[name]:
                    change.apply(exact, 0)
                stored = as_matrix(opened.get_tensor(key)).float()
                missing += float((stored - exact).square().sum(dtype=torch.float64))
                changed += float((exact - start).square().sum(dtype=torch.float64))
    return (missing / changed) ** 0.5 if changed else None


def note_lost_change(lost: float | None, dtype: torch.dtype, reporter: Reporter) -> None:
    """Note that rounding to the folder's dtype took much of the change."""
    if lost is not None and lost > MUCH:
        name = str(dtype).removeprefix("torch.")
        reporter.note(
            f"rounding to {name} took or blurred {min(lost, 1.0):.0%} of what the adapter changes, which is "
            "finer than the steps of the weights: train longer, or with model.dtype=float32"
        )
