"""What a micro-batch counts in its optimiser step: by its tokens, so that no division of the step matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lockadapt.data.batch import Batch
from lockadapt.objectives import Objective


@dataclass(frozen=True)
class Share:
    """The share of a batch in its optimiser step.

    Attributes:
        loss: factor on its mean loss; those of a step add up to 1.
        mean: its terms (answer tokens, image tokens, pairs) over those of its objective in the step.
        each: 1 over the number of micro-batches of its objective in the step.
    """

    loss: float = 1.0
    mean: float = 1.0
    each: float = 1.0


WHOLE = Share()
"""Of a batch that is a step by itself."""


def pieces_of(batch: Batch) -> list[Batch]:
    """The parts that a drawn micro-batch goes through the model in: itself, unless it was too large."""
    return batch.get("pieces", [batch])


def step_terms(batches: Sequence[Batch], objectives: Mapping[str, Objective]) -> torch.Tensor:
    """Counts a step's terms and micro-batches by objective.

    Args:
        batches: the micro-batches of the step on this process.
        objectives: by name.

    Returns:
        float64 (objectives, 2), in the order of `objectives`: terms, micro-batches.
    """
    counts = torch.zeros(len(objectives), 2, dtype=torch.float64)
    number = {name: index for index, name in enumerate(objectives)}
    for batch in batches:
        row, objective = counts[number[batch["objective"]]], objectives[batch["objective"]]
        row += torch.tensor([float(sum(map(objective.terms, pieces_of(batch)))), 1.0])
    return counts


def give_shares(batches: Sequence[Batch], objectives: Mapping[str, Objective], counts: torch.Tensor) -> None:
    """Writes into every batch its `share`, so that the step's loss is the mean over its terms, by objective.

    Objectives are weighed by how many of the step's micro-batches are theirs, as sampling weights want it.

    Args:
        batches: the micro-batches of the step on this process.
        objectives: by name.
        counts: of the step over all processes, see `step_terms`.
    """
    every = float(counts[:, 1].sum())
    by_name: dict[str, Any] = dict(zip(objectives, counts.tolist(), strict=True))
    for batch in batches:
        terms, micro_batches = by_name[batch["objective"]]
        for piece in pieces_of(batch):
            own = objectives[batch["objective"]].terms(piece)
            mean = own / terms if terms else 0.0
            piece["share"] = Share(micro_batches / every * mean, mean, 1 / micro_batches)
