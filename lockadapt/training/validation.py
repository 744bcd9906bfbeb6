"""Validation losses, each process its share of the batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from lockadapt import processes
from lockadapt.data.encode import Encoded
from lockadapt.data.pack import groups
from lockadapt.tuning.sharding import is_sharded

if TYPE_CHECKING:
    from lockadapt.training.trainer import GroundingTrainer


@torch.no_grad()
def validation_loss(trainer: GroundingTrainer, name: str, rows: Sequence[Encoded]) -> float:
    """The loss of an objective on rows: the mean over answer tokens, over all processes.

    Args:
        trainer: whose model, objectives and collator are used.
        name: of the objective.
        rows: all of them, the same on every process.

    Returns:
        The loss.
    """
    model: Any = trainer.model
    model.eval()
    objective = trainer.objectives[name]
    # Samples of one image side by side, where packing finds them.
    order = [number for group in groups(rows) for number in group]
    numbers = order if objective.packs else range(len(rows))
    items: Any = [(name, rows[number]) for number in numbers]
    size, own = trainer.args.eval_batch_size, trainer.args.process_index
    batches = [list(range(start, min(start + size, len(items)))) for start in range(0, len(items), size)]
    chosen = batches[own :: trainer.args.world_size]
    counted = len(chosen)
    if is_sharded(model):
        # Processes that share a model must call it equally often.
        most = -(-len(batches) // trainer.args.world_size)
        chosen += batches[:1] * (most - counted)
    sums = torch.zeros(2, dtype=torch.float64)
    with processes.alone():
        loader = DataLoader(items, batch_sampler=chosen, collate_fn=trainer.collate_whole)
        for number, batch in enumerate(loader):
            loss, report = objective.loss(model, trainer._prepare_inputs(batch))  # type: ignore[arg-type]
            tokens = float(report["tokens"]) if number < counted else 0.0
            sums += torch.tensor([float(loss) * tokens, tokens], dtype=torch.float64)
    sums = processes.add_up(sums)
    return float(sums[0] / sums[1])
