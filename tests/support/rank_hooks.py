"""What goes wrong on one process alone, for `tests.support.ranks`; each is called on every rank, with its number."""

from __future__ import annotations

from typing import Any

import torch

from lockadapt.errors import DataError
from lockadapt.training import loop, sharded
from lockadapt.training.trainer import GroundingTrainer
from lockadapt.tuning.sharding import is_shared


def bad_data(rank: int) -> None:
    """A row is wrong on the machine of process 1."""
    if rank == 1:

        def wrong(*_: Any) -> Any:
            raise DataError("the row has no answer", where="rows.jsonl:3")

        loop.load_samples = wrong  # type: ignore[assignment]


def out_of_memory(rank: int) -> None:
    """Memory of process 1 is used up at its third step."""
    if rank == 1:
        honest = GroundingTrainer.compute_loss

        def hungry(self: GroundingTrainer, *given: Any, **named: Any) -> Any:
            if self.state.global_step == 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 28.00 MiB")
            return honest(self, *given, **named)

        GroundingTrainer.compute_loss = hungry  # type: ignore[method-assign]


def other_weights(rank: int) -> None:
    """A weight of process 1 changes before a checkpoint."""
    if rank == 1:
        honest = GroundingTrainer.check_same

        def changed(self: GroundingTrainer) -> None:
            parameter = next(p for p in self.model.parameters() if p.requires_grad)  # type: ignore[union-attr]
            with torch.no_grad():
                parameter.view(-1)[0] += 1e-6
            honest(self)

        GroundingTrainer.check_same = changed  # type: ignore[method-assign]


def wrong_block(rank: int) -> None:
    """Process 1 gets something else of a frozen tensor when the LLM is sharded."""
    if rank == 1:
        honest = sharded.shard

        def shard(model: Any) -> int:
            count = honest(model)
            tensor: Any = next(p for p in model.parameters() if is_shared(p) and not p.requires_grad)
            with torch.no_grad():
                tensor.to_local().add_(0.5)
            return count

        sharded.shard = shard
