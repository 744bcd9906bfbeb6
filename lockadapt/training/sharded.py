"""Shares a stage's model among processes, and checks that batches have the loss that they had before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lockadapt import processes
from lockadapt.data.batch import on_device
from lockadapt.errors import VerificationError
from lockadapt.tuning.locks import frozen_digests
from lockadapt.tuning.sharding import refuse_unshardable, shard
from lockadapt.tuning.training_autocast import training_autocast

if TYPE_CHECKING:
    from lockadapt.training.trainer import GroundingTrainer

CLOSE, CLOSE_ELSEWHERE = 1e-5, 2e-2
"""Relative differences of a loss that are rounding: on one device; between a CPU in 16 bits and a GPU."""
ROWS = 2
"""Of each objective, in the batch that is compared."""


def shard_model(trainer: GroundingTrainer) -> str:
    """Shares the LLM's blocks of a trainer's model; all processes must call.

    Args:
        trainer: ready to train; its model is whole on every process.

    Returns:
        One line that says what was measured.

    Raises:
        RecipeError: this model was not tried sharded.
        VerificationError: a batch has another loss than before, or frozen tensors are not what they were.
    """
    model: Any = trainer.model
    refuse_unshardable(model)
    before, device = _losses(trainer), _device(model)
    count = shard(model)
    after = _losses(trainer)
    close = CLOSE if device == _device(model) else CLOSE_ELSEWHERE
    change = max(abs(after[name] / loss - 1) if loss else abs(after[name]) for name, loss in before.items())
    change = float(processes.gather_numbers(change).max())
    if not change <= close:
        raise VerificationError(
            f"batches have another loss once the LLM is sharded: before {before}, after {after}",
            where="training.sharding",
            fix="use sharding: none, and report it",
        )
    moved = [name for name, digest in frozen_digests(model).items() if digest != trainer.locked[name]]
    if moved:
        raise VerificationError(
            f"sharding changed {len(moved)} frozen tensors: {', '.join(moved[:3])}",
            where="training.sharding",
            fix="use sharding: none, and report it",
        )
    return (
        f"sharded: {count} tensors of the LLM's blocks among {processes.count()} processes; "
        f"a batch's loss differs by {change:.1e} from before"
    )


@torch.no_grad()
def _losses(trainer: GroundingTrainer) -> dict[str, float]:
    """The loss of the same few rows of every objective, without what is drawn by chance."""
    model: Any = trainer.model
    training = model.training
    model.eval()
    losses = {}
    with processes.alone(), torch.random.fork_rng(_gpus()), training_autocast(model):
        for name, rows in trainer.train_dataset.rows.items():  # type: ignore[union-attr]
            torch.manual_seed(0)
            batch = on_device(trainer.collate(name, rows[:ROWS], None), _device(model))
            losses[name] = float(trainer.objectives[name].loss(model, batch)[0])
    model.train(training)
    return losses


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device  # type: ignore[no-any-return]


def _gpus() -> list[int]:
    return [torch.cuda.current_device()] if torch.cuda.is_available() else []
