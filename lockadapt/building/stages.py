"""The stages of a recipe, every value filled in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lockadapt.objectives import Objective
from lockadapt.recipe.schema import Recipe, StageSection

NEW_PROJECTOR_RATE, TRAINED_PROJECTOR_RATE = 1e-3, 2e-5
"""Default learning rates: of LLaVA-1.5's stages (arXiv 2310.03744), the first of which starts a projector."""


@dataclass(frozen=True)
class MethodSettings:
    """How TRL trains a stage.

    Attributes:
        name: `dpo` or `grpo`.
        trl: fields of TRL's config.
        rewards: keys of each reward, by its name.
        guard_steps: consecutive steps without a signal that stop the stage.
        max_kl: KL per token, in nats, that stops it.
    """

    name: str
    trl: Mapping[str, Any]
    rewards: Mapping[str, Mapping[str, Any]]
    guard_steps: int
    max_kl: float


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
    method: MethodSettings | None = None
    """How TRL trains it; None: by the objectives' losses."""

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
    projector_is_new = recipe.model.vlm is None
    stages = []
    for section in recipe.stages or [whole]:
        names = tuple(section.objectives or recipe.objectives)
        method = _method(section)
        batch_size = section.batch_size or training.batch_size
        accumulation = section.accumulation or training.accumulation
        micro_batch = _micro_batch(objectives, names, section.sampling_weights, batch_size)
        if method is not None and method.name == "grpo":
            micro_batch = batch_size / answers_of_a_prompt(method)
        train = tuple(section.train or _parts(recipe, objectives, names))
        projector_rate = NEW_PROJECTOR_RATE if projector_is_new else TRAINED_PROJECTOR_RATE
        projector_is_new = projector_is_new and "projector" not in train
        steps, epochs = section.steps, section.epochs
        if steps is None and epochs is None:
            steps, epochs = training.steps, training.epochs
        if steps is None:
            per_step = micro_batch * accumulation * processes
            steps = max(1, math.ceil((epochs or 1.0) * sum(rows[name] for name in names) / per_step))
        stages.append(
            Stage(
                section.name,
                train,
                names,
                steps,
                batch_size,
                accumulation,
                section.learning_rate or training.learning_rate,
                section.projector_learning_rate or training.projector_learning_rate or projector_rate,
                section.retrieval_learning_rate or training.retrieval_learning_rate,
                section.generation_learning_rate or training.generation_learning_rate,
                section.sampling_weights,
                micro_batch,
                method,
            )
        )
    return stages


def answers_of_a_prompt(method: MethodSettings) -> int:
    """How many answers to a prompt a grpo stage compares: TRL's default unless the recipe says."""
    if (named := method.trl.get("num_generations")) is not None:
        return max(1, int(named))
    from lockadapt.models.trl_config import trl_fields  # imports TRL

    return int(trl_fields("grpo")["num_generations"])


def _method(section: StageSection) -> MethodSettings | None:
    if section.method is None:
        return None
    rewards = section.rewards.model_dump(exclude_none=True) if section.rewards is not None else {}
    guard = section.guard
    return MethodSettings(section.method, section.trl, rewards, guard.steps, guard.max_kl)


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
