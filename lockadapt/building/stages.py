"""The stages of a recipe, every value filled in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lockadapt.objectives import Objective
from lockadapt.recipe.schema import Recipe, StageSection


@dataclass(frozen=True)
class Stage:
    """One stage with every value filled in."""

    name: str
    train: tuple[str, ...]
    objectives: tuple[str, ...]
    steps: int
    batch_size: int
    accumulation: int
    learning_rate: float
    projector_learning_rate: float
    retrieval_learning_rate: float | None
    """None: the projector's."""
    generation_learning_rate: float | None
    """None: the projector's."""
    sampling_weights: Mapping[str, float] = field(default_factory=dict)
    micro_batch: float = 0.0
    """Samples in a micro-batch on average over the objectives."""

    @property
    def samples(self) -> int:
        """How many rows the stage sees, over all objectives."""
        return round(self.steps * self.micro_batch * self.accumulation)


def build_stages(
    recipe: Recipe, objectives: Mapping[str, Objective], rows: Mapping[str, int], processes: int = 1
) -> list[Stage]:
    """Builds the recipe's stages, lengths in optimiser steps.

    Args:
        recipe: checked already.
        objectives: of the recipe, by name.
        rows: training rows by objective; an epoch is one pass over the rows of a stage's objectives.
        processes: that train together.

    Returns:
        Stages in the order that they run.
    """
    training = recipe.training
    whole = StageSection(name="train")
    stages = []
    for section in recipe.stages or [whole]:
        names = tuple(section.objectives or recipe.objectives)
        batch_size = section.batch_size or training.batch_size
        accumulation = section.accumulation or training.accumulation
        steps, epochs = section.steps, section.epochs
        if steps is None and epochs is None:
            steps, epochs = training.steps, training.epochs
        if steps is None:
            per_step = (
                _micro_batch(objectives, names, section.sampling_weights, batch_size)
                * accumulation
                * processes
            )
            steps = max(1, math.ceil((epochs or 1.0) * sum(rows[name] for name in names) / per_step))
        stages.append(
            Stage(
                section.name,
                tuple(section.train or _parts(recipe, objectives, names)),
                names,
                steps,
                batch_size,
                accumulation,
                section.learning_rate or training.learning_rate,
                section.projector_learning_rate or training.projector_learning_rate,
                section.retrieval_learning_rate or training.retrieval_learning_rate,
                section.generation_learning_rate or training.generation_learning_rate,
                section.sampling_weights,
                _micro_batch(objectives, names, section.sampling_weights, batch_size),
            )
        )
    return stages


def _micro_batch(
    objectives: Mapping[str, Objective],
    names: Sequence[str],
    sampling_weights: Mapping[str, float],
    batch_size: int,
) -> float:
    """Samples in a micro-batch on average: objectives may have sizes of their own."""
    shares = {name: sampling_weights.get(name, objectives[name].sampling_weight) for name in names}
    total = sum(shares[name] * (objectives[name].batch_size or batch_size) for name in names)
    return total / sum(shares.values())


def _parts(recipe: Recipe, objectives: Mapping[str, Objective], names: Sequence[str]) -> list[str]:
    """LoRA if there is any, and what these objectives need."""
    needed = [part for name, objective in objectives.items() if name in names for part in objective.parts]
    return list(dict.fromkeys([*needed, *(["lora"] if recipe.lora else [])]))
