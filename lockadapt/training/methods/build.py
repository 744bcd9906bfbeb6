"""Makes the trainer of a stage with a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockadapt import processes
from lockadapt.building.stages import Stage
from lockadapt.errors import RecipeError
from lockadapt.models.sources import resolve_dtype
from lockadapt.objectives import Objective
from lockadapt.training.arguments import grounding_config
from lockadapt.training.methods.locked import LockedStage, MethodSetup

if TYPE_CHECKING:
    from lockadapt.training.stage import Session


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
    )
    # Only now, as TRL takes seconds to import.
    from lockadapt.training.methods.dpo import DpoStage

    return DpoStage(setup)
