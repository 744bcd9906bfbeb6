"""Makes the trainer of a stage with a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lockadapt import processes
from lockadapt.building.stages import Stage
from lockadapt.data.model_encoder import model_encoder
from lockadapt.errors import RecipeError
from lockadapt.models.sources import resolve_dtype
from lockadapt.objectives import Objective
from lockadapt.rewards import make_rewards
from lockadapt.training.arguments import grounding_config
from lockadapt.training.methods.locked import LockedStage, MethodSetup

if TYPE_CHECKING:
    from lockadapt.training.stage import Session

TEXTS = 64
"""Whose perplexity is measured before and after."""


def method_trainer(
    session: Session,
    stage: Stage,
    folder: Path,
    objectives: Mapping[str, Objective],
    callbacks: Sequence[Any],
) -> LockedStage:
    """Makes the trainer.

    Args:
        session: of the run.
        stage: with a method.
        folder: for its checkpoints.
        objectives: of the stage, by name; one.
        callbacks: of the stage.

    Returns:
        The trainer.

    Raises:
        RecipeError: several processes, or TRL refuses its arguments.
        LockadaptError: the stage cannot learn.
    """
    assert stage.method is not None
    if processes.count() > 1:
        raise RecipeError(
            f"a stage with method {stage.method.name} trains in one process",
            where=f"stages: {stage.name}",
            fix="leave --processes out",
        )
    experiment, rows = session.experiment, session.rows
    [(name, objective)] = objectives.items()
    validation = rows.validation.get(name, [])
    dtype = resolve_dtype(experiment.model.dtype)
    setup = MethodSetup(
        name,
        objective,
        session.model,
        session.processor,
        rows.train[name],
        validation,
        rows.images[name],
        grounding_config(experiment, stage, folder, dtype, bool(validation)),
        stage.method,
        callbacks,
        _texts(session, name),
    )
    # Only now, as TRL takes seconds to import.
    if stage.method.name == "dpo":
        from lockadapt.training.methods.dpo import DpoStage

        return DpoStage(setup)
    from lockadapt.training.methods.grpo import GrpoStage

    samples = [row.sample for row in setup.train]
    rewards = make_rewards(stage.method.rewards, samples, session.reward_access)
    data = experiment.data
    encoder = model_encoder(session.model, session.processor, data.max_length, data.allow_special_tokens)
    return GrpoStage(setup, rewards, encoder)


def _texts(session: Session, name: str) -> list[torch.Tensor]:
    """Texts without images: those of an objective of the kind text, else the stage's own conversations."""
    rows = session.rows
    kinds = {key: objective.kind for key, objective in session.experiment.objectives.items()}
    plain = [row for key, items in rows.train.items() if kinds[key] == "text" for row in items]
    chosen = (plain or rows.train[name])[:TEXTS]
    encoder = model_encoder(session.model, session.processor, None)
    return [
        torch.from_numpy(row.input_ids[row.input_ids != encoder.image_token_id].astype("int64"))
        for row in chosen
    ]
