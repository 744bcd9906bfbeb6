"""One stage of a run: trained, or loaded where it was finished before; its lock proved, its end written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback

from lockadapt import processes
from lockadapt.building.experiment import Experiment
from lockadapt.building.objectives import stage_objectives
from lockadapt.building.stages import Stage
from lockadapt.console import Reporter
from lockadapt.errors import VerificationError
from lockadapt.files import write_json
from lockadapt.models.quiet import quiet
from lockadapt.models.sources import resolve_dtype, some
from lockadapt.objectives import Objective
from lockadapt.planning.admission import Finding
from lockadapt.rewards import RewardAccess
from lockadapt.runs import run_folder
from lockadapt.runs.record import StageRecord, read_as
from lockadapt.training import checkpoint
from lockadapt.training.arguments import grounding_config
from lockadapt.training.begun import own_rows
from lockadapt.training.methods.build import method_trainer
from lockadapt.training.methods.locked import LockedStage
from lockadapt.training.preflight import try_largest_batch
from lockadapt.training.progress import ProgressCallback, forget_after
from lockadapt.training.resuming import train_from
from lockadapt.training.rows import Rows
from lockadapt.training.start import StageStart, rows_digest
from lockadapt.training.trainer import GroundingTrainer
from lockadapt.tuning.locks import (
    component_table,
    component_text,
    prove_text_locked,
    table_json,
    text_logits,
)

TEXTS = 8
"""Of each objective, that `model.lock_text` is proved on."""

Observer = Callable[["Session", str, Mapping[str, Objective]], list[TrainerCallback]]
"""Session, name of a stage and its objectives -> callbacks of the stage's trainer."""

CHECKPOINTS, OUTCOME = "checkpoints", "outcome.json"


@dataclass(frozen=True)
class Session:
    """A run that is built and ready to train.

    Attributes:
        experiment: made from its recipe.
        folder: the run folder.
        model: with adapters and what its objectives add; every stage trains this one.
        processor: the model's.
        rows: of all objectives.
        reporter: is told how it goes.
        resume: whether to go on from the last complete checkpoint.
        admission: what was measured of a class without a description of its own.
        observers: give further callbacks to every stage.
        began_with: processes that the run began with; its steps are made for so many.
        reward_access: what rewards may use from outside.
    """

    experiment: Experiment
    folder: Path
    model: Any
    processor: Any
    rows: Rows
    reporter: Reporter
    resume: bool
    admission: Sequence[Finding] = ()
    observers: Sequence[Observer] = ()
    began_with: int = 1
    reward_access: RewardAccess = field(default_factory=RewardAccess)

    @property
    def base(self) -> str:
        """The Transformers folder or Hub id that the model was loaded from."""
        own = self.folder / run_folder.BASE
        return str(own) if own.is_dir() else self.experiment.model.vlm or ""


@dataclass(frozen=True)
class TrainedStage:
    """How a stage ended, and the SHA-256 over the digests of what was frozen in it."""

    record: StageRecord
    fingerprint: str


def run_stage(session: Session, stage: Stage) -> TrainedStage:
    """Trains one stage, or loads its end where `--resume` finds it finished; proves the lock.

    Args:
        session: of the run.
        stage: which is trained.

    Returns:
        The stage's result.

    Raises:
        LockadaptError: the stage cannot learn, does not fit, or moved what is frozen.
    """
    folder = session.folder / CHECKPOINTS / stage.name
    trainer = stage_trainer(session, stage, folder)
    model, note = session.model, session.reporter.note
    table = component_table(model)
    samples_a_step = stage.micro_batch * stage.accumulation * session.began_with
    note(f"stage {stage.name}: {stage.steps:,} steps of {samples_a_step:g}\n{component_text(table)}")
    note(trainer.packing.why)
    if trainer.unreached:
        note(f"frozen, as no loss depends on them: {some(trainer.unreached)}")
    fingerprint = run_folder.fingerprint(trainer.locked)
    rows = {name: rows_digest(session.rows.train[name]) for name in stage.objectives}
    start = StageStart(trainer.locked, rows)
    if others := processes.other_ranks(f"{fingerprint} {sorted(rows.items())}"):
        raise VerificationError(
            f"processes {others} have another base or other rows than process 0",
            where=stage.name,
            fix="give all machines the same files",
        )
    processes.first(lambda: start.keep_or_compare(folder, session.resume))
    finished = folder / checkpoint.FINISHED
    if session.resume and checkpoint.is_complete(finished):
        checkpoint.load_trainable(model, finished)
        if isinstance(trainer, LockedStage):
            trainer.release()
        note(f"stage {stage.name} was finished before")
        return TrainedStage(read_as(StageRecord, finished / OUTCOME), fingerprint)
    last = checkpoint.latest(folder) if session.resume else None
    if session.resume:
        for file in (run_folder.METRICS, run_folder.FOLLOWED):
            processes.first(partial(forget_after, session.folder / file, stage.name, last))
        note(f"stage {stage.name}: " + (f"going on from {last.name}" if last else "from its start"))
    if isinstance(trainer, GroundingTrainer) and (line := trainer.shard()):
        note(line)
    texts = _texts(session) if session.experiment.model.lock_text else []
    before = text_logits(model, texts)
    largest = None
    if isinstance(trainer, GroundingTrainer):
        largest = processes.together(
            lambda: try_largest_batch(trainer, session.experiment, session.base, session.reporter)
        )
    with quiet():
        result = train_from(trainer, last)
    outcome = {
        "name": stage.name,
        "steps": result.global_step,
        "samples": round(result.global_step * samples_a_step),
        "samples_by_objective": dict(trainer.measures.seen),
        "train_loss": result.training_loss,
        "best_validation_loss": trainer.state.best_metric,
        "loss_change_by_swapped_images": trainer.image_sensitivity,
        "largest_batch_bytes": largest.peak if largest is not None else None,
        "components": table_json(table),
        "packing": trainer.packing.to_dict(),
        "seconds": round(trainer.measures.seconds, 3),
        "locked": processes.together(trainer.prove_locked),
        "text_logit_change": prove_text_locked(before, text_logits(model, texts)) if texts else None,
        **(trainer.outcome() if isinstance(trainer, LockedStage) else {}),
    }
    if texts:
        note(f"text lock: the logits of {len(texts)} texts without an image are unchanged, bit for bit")
    trainer.check_same()
    processes.together(lambda: checkpoint.save_trainable(model, finished))
    processes.first(lambda: _write_end(finished, outcome))
    return TrainedStage(read_as(StageRecord, finished / OUTCOME), fingerprint)


def _write_end(finished: Path, outcome: Mapping[str, Any]) -> None:
    write_json(finished / OUTCOME, outcome)
    checkpoint.seal(finished)


def _texts(session: Session) -> list[torch.Tensor]:
    """Training rows without their images, as token ids."""
    rows = [row for items in session.rows.train.values() for row in items[:TEXTS]]
    return [torch.from_numpy(row.input_ids.astype("int64")) for row in rows]


def stage_trainer(session: Session, stage: Stage, folder: Path) -> GroundingTrainer | LockedStage:
    """The trainer of a stage, which writes its checkpoints into `folder`."""
    experiment, rows = session.experiment, session.rows
    validation = {name: items for name, items in rows.validation.items() if name in stage.objectives}
    began_with = session.began_with
    objectives = {
        name: replace(objective, batch_size=own_rows(objective.batch_size, began_with, f"objectives.{name}"))
        if objective.batch_size
        else objective
        for name, objective in stage_objectives(
            experiment.objectives, stage.objectives, stage.sampling_weights
        ).items()
    }
    metrics = session.folder / run_folder.METRICS
    samples_a_step = stage.micro_batch * stage.accumulation * began_with
    per_step = samples_a_step / sum(len(rows.train[name]) for name in stage.objectives)
    callbacks: list[Any] = [ProgressCallback(session.reporter, metrics, stage.name, per_step)]
    if experiment.training.patience and validation:
        callbacks.append(EarlyStoppingCallback(experiment.training.patience))
    for name, objective in objectives.items():
        shown = validation.get(name) or rows.train[name]
        samples = session.folder / "samples" / stage.name / name
        callbacks += objective.callbacks(samples, session.processor, shown)
    for observer in session.observers:
        callbacks += observer(session, stage.name, objectives)
    if stage.method is not None:
        return method_trainer(session, stage, folder, objectives, callbacks)
    dtype = resolve_dtype(experiment.model.dtype)
    trainer = GroundingTrainer(
        session.model,
        grounding_config(
            experiment,
            replace(stage, batch_size=own_rows(stage.batch_size, began_with, "training.batch_size")),
            folder,
            dtype,
            bool(validation),
        ),
        {name: rows.train[name] for name in stage.objectives},
        validation or None,
        session.processor,
        objectives=objectives,
        image_inputs=rows.images,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
