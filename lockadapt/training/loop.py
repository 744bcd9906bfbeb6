"""A whole training run, from recipe to run folder: read, build, lock, train, prove, write."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from lockadapt import processes
from lockadapt.architectures import tower_of
from lockadapt.building.experiment import build_experiment
from lockadapt.building.model import add_adapters, build_model
from lockadapt.building.revisions import pin_revisions
from lockadapt.building.tables import build_tables
from lockadapt.console import Reporter
from lockadapt.data.claims import Claims
from lockadapt.errors import LockadaptError, RecipeError
from lockadapt.features.towerless import cached_tower, remember_towers
from lockadapt.files import clear_abandoned
from lockadapt.models.query_tokens import query_token_ids
from lockadapt.models.sources import resolve_dtype
from lockadapt.planning.admission import admit_rows, cache_refusal
from lockadapt.recipe.schema import Recipe
from lockadapt.rewards import RewardAccess
from lockadapt.runs import run_folder
from lockadapt.runs.integrity import base_digest
from lockadapt.training import checkpoint
from lockadapt.training.begun import first_then_others, run_processes
from lockadapt.training.finish import Training, write_run
from lockadapt.training.from_run import begin_from, open_start
from lockadapt.training.rows import (
    encode_rows,
    few_training_samples,
    image_policy,
    images_first,
    images_of,
    load_samples,
)
from lockadapt.training.stage import CHECKPOINTS, Observer, Session, run_stage
from lockadapt.tuning.base_identity import base_identity
from lockadapt.tuning.experts import experts_note
from lockadapt.tuning.sharding import gather_trained, refuse_unshardable

LOCK = ".lock"
"""Held by the process that trains in a run folder; it ends with that process."""


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
        output: the run folder.
        steps: optimiser steps.
        seconds: that training took, without reading rows and building the model.
        samples_per_second: over all stages.
        locked: the lock was proved: every frozen tensor is what it was.
        reward: `{"first", "last", "held_out"}` of the last stage with a method; None: there is none.
    """

    output: Path
    steps: int
    seconds: float
    samples_per_second: float
    locked: bool
    reward: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """What `lockadapt train --json` prints."""
        printed = {**asdict(self), "output": str(self.output)}
        if self.reward is None:
            del printed["reward"]
        return printed


@dataclass(frozen=True)
class Outside:
    """What a run is given by whoever starts it, beside its recipe."""

    observers: Sequence[Observer]
    reward_access: RewardAccess


def train(
    recipe: Recipe,
    output: str | Path,
    reporter: Reporter,
    resume: bool = False,
    observers: Sequence[Observer] = (),
    reward_access: RewardAccess | None = None,
) -> TrainResult:
    """Run a recipe and write the run folder.

    Args:
        recipe: checked already.
        output: the run folder; must be new or empty, unless `resume`.
        reporter: is told how it goes.
        resume: go on from the last complete checkpoint in `output`. Processes that an elastic launcher starts
            again do so by themselves.
        observers: give further callbacks to every stage.
        reward_access: what rewards may use from outside; default: nothing.

    Returns:
        What was written, and how fast.

    Raises:
        LockadaptError: children say what and where; what was written before stays for `--resume`.
    """
    processes.join()
    if not processes.is_first():
        reporter = Reporter(quiet=True)
    folder = Path(output)
    begun = processes.restarted() and run_folder.is_run(folder)
    resume = resume or bool(processes.gather_numbers(float(begun)).max())
    with contextlib.ExitStack() as claimed:
        processes.first(lambda: _claim(claimed, _opened(recipe, folder, resume)))
        # The commits of what is streamed from the Hub are those that the first process wrote down.
        recipe = pin_revisions(recipe, partial(run_folder.read_recipe, folder))
        outside = Outside(observers, reward_access or RewardAccess())
        try:
            return _train(recipe, folder, reporter, resume, outside)
        except LockadaptError:
            if processes.is_first():
                run_folder.forget_unbegun(folder, LOCK)
            raise


def _opened(recipe: Recipe, folder: Path, resume: bool) -> Path:
    """The run folder, whose recipe names the commits of what is streamed from the Hub."""
    begun = partial(run_folder.read_recipe, folder) if resume else None
    return run_folder.open_folder(pin_revisions(recipe, begun), folder, resume)


def _claim(claimed: contextlib.ExitStack, folder: Path) -> None:
    """Keeps other runs out of a folder until `claimed` closes; clears what a killed one left in it."""
    claims = claimed.enter_context(Claims(folder / LOCK))
    if not claims.take(0):
        raise RecipeError(
            "another process is training in it",
            where=str(folder),
            fix="wait for it, or name another --output",
        )
    clear_abandoned(folder)
    checkpoint.remove_unfinished(folder / CHECKPOINTS)


def _train(recipe: Recipe, folder: Path, reporter: Reporter, resume: bool, outside: Outside) -> TrainResult:
    """The way of `train` in a folder that is this run's alone."""
    experiment, dtype = build_experiment(recipe), resolve_dtype(recipe.model.dtype)
    began_with = processes.together(lambda: run_processes(folder, resume))

    # Read: rows, and all that their images would need the tower for, if it is kept.
    processes.first(lambda: build_tables(experiment, lambda _: None))  # what it notes comes with the rows
    samples = processes.together(lambda: load_samples(experiment, reporter))
    base = folder / run_folder.BASE
    start = Path(recipe.model.vlm or base).expanduser()
    policy = image_policy(experiment, reporter)
    images = images_of(samples) if policy.settings.choice == "disk" else {}
    cached = cached_tower(start, dtype, images, policy)

    # Build: the base, its adapters, and what objectives add, also those that no stage trains.
    calibration = few_training_samples(samples)
    model, processor = first_then_others(
        lambda: build_model(experiment, base, calibration, reporter, cached.record if cached else None)
    )
    trained_rows = query_token_ids(processor.tokenizer, experiment.query_tokens)
    identity = base_identity(model, processor.tokenizer, trained_rows)
    base_files = base_digest(folder, recipe.model.vlm or "")
    begun = open_start(model, processor, recipe.model.run) if recipe.model.run is not None else None
    # Directly before the adapter is initialised, so that a resumed run starts from the same one.
    set_seed(recipe.training.seed)
    model = add_adapters(experiment, model, processor)
    if experiment.lora is not None and (note := experts_note(model)):
        reporter.note(note)
    for objective in experiment.objectives.values():
        objective.prepare(model)
    if begun is not None:
        begin_from(model, begun)
    sharded = experiment.training.sharding == "fsdp" and processes.count() > 1
    if sharded:
        refuse_unshardable(model)
    if torch.cuda.is_available():
        # What is shared may not fit one GPU; until it is, only the tower works there.
        (tower_of(model) if sharded else model).to("cuda")
    admission = processes.together(
        lambda: admit_rows(model, processor, images_first(samples), reporter, experiment.projector_trains)
    )
    measured = replace(policy, refused=cache_refusal(admission))
    encoding = first_then_others if experiment.features.choice == "disk" else processes.together
    rows = encoding(lambda: encode_rows(experiment, model, processor, samples, measured, cached))
    rows.write_bad_rows(folder)
    if sharded:
        tower_of(model).to("cpu")
    processes.first(lambda: remember_towers(start, dtype, model, rows.images.values()))

    # Lock, train, prove: stage by stage.
    session = Session(
        experiment,
        folder,
        model,
        processor,
        rows,
        reporter,
        resume,
        admission,
        outside.observers,
        began_with,
        outside.reward_access,
    )
    stages = experiment.stages(rows.counts, began_with)
    trained = [run_stage(session, stage) for stage in stages]
    steps = sum(stage.steps for stage in stages)
    seconds = sum(stage.record.seconds or 0.0 for stage in trained)
    training = Training(trained, identity, base_files, steps, seconds)

    gather_trained(model)
    processes.first(lambda: write_run(session, training, samples))
    reporter.note(
        f"lock proof: {training.locked:,} frozen tensors unchanged. "
        f"{steps:,} steps in {seconds:.0f} s: {folder}"
    )
    rate = round(training.samples_per_second, 2)
    return TrainResult(folder, steps, round(seconds, 2), rate, True, training.reward)
