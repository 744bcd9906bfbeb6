"""A whole training run, from recipe to run folder: assemble, lock, train stage by stage, prove, write."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, PrinterCallback, set_seed

from lockadapt.architectures.blocks import context_length
from lockadapt.building.experiment import Experiment, build_experiment
from lockadapt.building.model import add_adapters, build_model
from lockadapt.building.objectives import stage_objectives
from lockadapt.building.stages import Stage
from lockadapt.console import Reporter
from lockadapt.data.encode import Encoded, Encoder
from lockadapt.data.pixels import ImageInputs
from lockadapt.data.sample import ImageRef, Sample
from lockadapt.data.scan import scan_images
from lockadapt.errors import DataError, RecipeError
from lockadapt.features.inputs import inputs_by_objective
from lockadapt.features.policy import ImagePolicy
from lockadapt.features.towerless import CachedTower, cached_tower, remember_towers
from lockadapt.models.query_tokens import query_token_ids
from lockadapt.models.quiet import quiet
from lockadapt.models.sources import resolve_dtype
from lockadapt.recipe.schema import Recipe
from lockadapt.runs import run_folder
from lockadapt.runs.artifacts import save_artifacts
from lockadapt.runs.card import write_card
from lockadapt.runs.origins import recipe_origins
from lockadapt.runs.record import RunRecord, write_record
from lockadapt.runs.run import open_run
from lockadapt.training import checkpoint
from lockadapt.training.arguments import grounding_config
from lockadapt.training.plot import plot_losses
from lockadapt.training.preflight import try_largest_batch
from lockadapt.training.progress import ProgressCallback
from lockadapt.training.rows import encoded_rows
from lockadapt.training.trainer import GroundingTrainer
from lockadapt.tuning.base_identity import base_identity
from lockadapt.tuning.locks import component_table, component_text, table_json

CHECKPOINTS, FINISHED = "checkpoints", "finished"


@dataclass(frozen=True)
class TrainResult:
    """What `lockadapt train --json` prints."""

    output: str
    steps: int
    seconds: float
    samples_per_second: float
    locked: bool


@dataclass(frozen=True)
class Rows:
    """Training and validation rows of all objectives, encoded, and where their images come from."""

    train: dict[str, list[Encoded]]
    validation: dict[str, list[Encoded]]
    images: dict[str, ImageInputs]


def train(recipe: Recipe, output: str | Path, reporter: Reporter, resume: bool = False) -> TrainResult:
    """Runs a recipe and writes the run folder.

    Args:
        recipe: checked already.
        output: the run folder; must be new or empty, unless `resume`.
        resume: go on from the last complete checkpoint in `output`.

    Raises:
        LockadaptError: children say what and where; what was written before stays for `--resume`.
    """
    folder = prepare_folder(recipe, Path(output), resume)
    experiment, base, dtype = (
        build_experiment(recipe),
        folder / run_folder.BASE,
        resolve_dtype(recipe.model.dtype),
    )
    samples = load_samples(experiment, reporter)
    start, policy = Path(recipe.model.vlm or base).expanduser(), image_policy(experiment, reporter)
    cached = cached_tower(start, dtype, _images(samples), policy)
    trained_on = [sample for rows in samples["train"].values() for sample in rows]
    model, processor = build_model(experiment, base, trained_on, reporter, cached.record if cached else None)
    rows_trained = query_token_ids(processor.tokenizer, experiment.query_tokens)
    identity = base_identity(model, processor.tokenizer, rows_trained)
    # Directly before the adapter is initialised, so that a resumed run starts from the same one.
    set_seed(recipe.training.seed)
    model = add_adapters(experiment, model, processor)
    # Every objective's, also of one that no stage trains: `load_run` reads the run folder in the same way.
    for objective in experiment.objectives.values():
        objective.prepare(model)
    if torch.cuda.is_available():
        model = model.to("cuda")
    rows = encode(experiment, model, processor, samples, reporter, cached)
    remember_towers(start, dtype, model, rows.images.values())
    started, facts = time.perf_counter(), _first_facts(recipe, folder, dtype)
    facts["base_identity"] = identity.to_dict()
    steps, seen, locked = 0, 0, 0
    for stage in experiment.stages({name: len(items) for name, items in rows.train.items()}):
        outcome = run_stage(experiment, stage, folder, model, processor, rows, dtype, reporter, resume)
        steps, seen, locked = steps + stage.steps, seen + outcome["samples"], max(locked, outcome["locked"])
        facts["stages"].append(outcome)
        facts["base_fingerprint"] = outcome.pop("fingerprint")
    seconds = time.perf_counter() - started
    save_artifacts(model, processor, folder, base=run_folder.base_of(folder, facts["base"]))
    run_folder.write_probe(folder, _probe_samples(samples), recipe.data.max_pixels)
    replacement = next((i.replacement for i in rows.images.values() if i.replacement), None)
    if replacement is not None:
        replacement.save(folder / run_folder.MEAN_IMAGE_FILE)
    plot_losses(folder / run_folder.METRICS, folder / "loss.png")
    rate = seen / max(seconds, 1e-9)
    facts.update(
        {"steps": steps, "seconds": round(seconds, 2), "samples_per_second": round(rate, 2), "locked": True}
    )
    write_record(folder, RunRecord.model_validate_json(json.dumps(facts)))
    write_card(open_run(folder))
    reporter.note(
        f"lock proof: {locked:,} frozen tensors unchanged. {steps:,} steps in {seconds:.0f} s: {folder}"
    )
    return TrainResult(str(folder), steps, round(seconds, 2), round(rate, 2), True)


def prepare_folder(recipe: Recipe, folder: Path, resume: bool) -> Path:
    """Makes the run folder, or checks that the one to resume belongs to this recipe."""
    same = recipe.model_copy(update={"output": None})
    if resume:
        before = run_folder.read_recipe(folder).model_copy(update={"output": None})
        if before != same:
            raise RecipeError(
                "differs from the recipe of the run", where=str(folder), fix="resume with the same recipe"
            )
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError(
            "exists and is not empty", where=f"--output {folder}", fix="name a new folder, or add --resume"
        )
    folder.mkdir(parents=True, exist_ok=True)
    run_folder.write_recipe(folder, same)
    return folder


def load_samples(experiment: Experiment, reporter: Reporter) -> dict[str, dict[str, list[Sample]]]:
    """Rows of training and validation by objective, every image opened once."""
    found = {part: experiment.samples(part) for part in ("train", "validation")}
    flat = [sample for rows in found.values() for samples in rows.values() for sample in samples]
    data = experiment.data
    report = scan_images(
        flat,
        data.max_pixels,
        data.on_bad_image,
        data.max_bad_fraction,
        progress=reporter.counted("opening images"),
    )
    if report.bad:
        reporter.note(
            f"left out {len(report.bad)} bad images: "
            + "; ".join(f"{b.where}: {b.reason}" for b in report.bad[:5])
        )
        kept = {id(sample) for sample in report.good}
        found = {
            part: {name: [s for s in samples if id(s) in kept] for name, samples in rows.items()}
            for part, rows in found.items()
        }
    return found


def encode(
    experiment: Experiment,
    model: Any,
    processor: Any,
    samples: dict[str, dict[str, list[Sample]]],
    reporter: Reporter,
    cached: CachedTower | None = None,
) -> Rows:
    """Tokens and labels of all rows, and the frozen tower's outputs where they are kept."""
    encoder = Encoder(
        processor, experiment.data.max_length or context_length(model), experiment.data.allow_special_tokens
    )
    objectives = experiment.objectives
    train, reports = encoded_rows(samples["train"], objectives, encoder)
    validation, _ = encoded_rows(samples["validation"], objectives, encoder)
    for name, report in reports.items():
        if report.cut or report.dropped:
            reporter.note(
                f"{name}: {len(report.cut)} samples cut, {len(report.dropped)} dropped (longer than the limit)"
            )
        if not report.encoded:
            raise DataError(
                "no sample is left", where=f"objectives.{name}.train", fix="raise data.max_length"
            )
    rows = {name: [*train[name], *validation.get(name, ())] for name in train}
    uses = sum(stage.samples for stage in experiment.stages({n: len(r) for n, r in train.items()}))
    distinct = len({image.key for items in rows.values() for row in items for image in row.images})
    count = sum(map(len, rows.values()))
    reporter.note(f"{count:,} rows, {distinct:,} images, {encoder.image_tokens} tokens an image")
    if cached is not None:
        return Rows(train, validation, dict.fromkeys(objectives, cached.images))
    frozen = {name: objective.frozen for name, objective in objectives.items()}
    images = inputs_by_objective(
        model, processor, frozen, rows, image_policy(experiment, reporter), reused=uses > distinct
    )
    return Rows(train, validation, images)


def image_policy(experiment: Experiment, reporter: Reporter) -> ImagePolicy:
    """How the images of an experiment become inputs of batches."""
    return ImagePolicy(
        experiment.features,
        experiment.data.max_pixels,
        experiment.blind,
        note=reporter.note,
        progress=reporter.counted("running what is frozen on images"),
    )


def run_stage(
    experiment: Experiment,
    stage: Stage,
    folder: Path,
    model: Any,
    processor: Any,
    rows: Rows,
    dtype: torch.dtype,
    reporter: Reporter,
    resume: bool,
) -> dict[str, Any]:
    """Trains one stage, or loads its end where `--resume` finds it finished; proves the lock."""
    place = folder / CHECKPOINTS / stage.name
    validation = {name: items for name, items in rows.validation.items() if name in stage.objectives}
    callbacks: list[Any] = [ProgressCallback(reporter, folder / run_folder.METRICS, stage.name)]
    if experiment.training.patience and validation:
        callbacks.append(EarlyStoppingCallback(experiment.training.patience))
    objectives = stage_objectives(experiment.objectives, stage.objectives, stage.sampling_weights)
    for name, objective in objectives.items():
        shown = validation.get(name) or rows.train[name]
        callbacks += objective.callbacks(folder / "samples" / stage.name / name, processor, shown)
    trainer = GroundingTrainer(
        model,
        grounding_config(experiment, stage, place, dtype, bool(validation)),
        {name: rows.train[name] for name in stage.objectives},
        validation or None,
        processor,
        objectives=objectives,
        image_inputs=rows.images,
        callbacks=callbacks,
    )
    table = component_table(model)
    reporter.note(
        f"stage {stage.name}: {stage.steps:,} steps of {stage.micro_batch * stage.accumulation:g}\n{component_text(table)}"
    )
    reporter.note(trainer.packing.why)
    fingerprint = run_folder.fingerprint(trainer.locked)
    done = place / FINISHED
    if resume and checkpoint.is_complete(done):
        checkpoint.load_trainable(model, done)
        reporter.note(f"stage {stage.name} was finished before")
        return {**json.loads((done / "outcome.json").read_text()), "fingerprint": fingerprint}
    last = checkpoint.latest(place) if resume else None
    if resume:
        _forget_after(folder / run_folder.METRICS, stage.name, last)
        reporter.note(f"stage {stage.name}: " + (f"going on from {last.name}" if last else "from its start"))
    trainer.remove_callback(PrinterCallback)
    base = folder / run_folder.BASE
    largest = try_largest_batch(
        trainer, experiment, base if base.is_dir() else experiment.model.vlm or "", reporter
    )
    with quiet():
        result = trainer.train(resume_from_checkpoint=str(last) if last else None)
    outcome = {
        "name": stage.name,
        "steps": result.global_step,
        "samples": round(result.global_step * stage.micro_batch * stage.accumulation),
        "samples_by_objective": dict(trainer.seen),
        "train_loss": result.training_loss,
        "best_validation_loss": trainer.state.best_metric,
        "loss_change_by_swapped_images": trainer.image_sensitivity,
        "largest_batch_bytes": largest.peak,
        "components": table_json(table),
        "packing": trainer.packing.to_dict(),
        "locked": trainer.prove_locked(),
    }
    checkpoint.save_trainable(model, done)
    (done / "outcome.json").write_text(json.dumps(outcome))
    checkpoint.seal(done)
    return {**outcome, "fingerprint": fingerprint}


def _first_facts(recipe: Recipe, folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "command": run_folder.command_line(),
        "versions": run_folder.versions(),
        "seed": recipe.training.seed,
        "base": str(folder / run_folder.BASE) if (folder / run_folder.BASE).is_dir() else recipe.model.vlm,
        "llm": recipe.model.llm,
        "tower": recipe.model.tower,
        "dtype": str(dtype).removeprefix("torch."),
        "quantization": recipe.model.quantization,
        "blind": recipe.blind,
        "sources": [dataclasses.asdict(one) for one in recipe_origins(recipe)],
        "stages": [],
    }


def _probe_samples(samples: dict[str, dict[str, list[Sample]]]) -> list[Sample]:
    """A few samples, objectives in turn, each with another image where possible; held-out ones first."""
    chosen: list[Sample] = []
    seen: set[str] = set()
    pools = [list(rows) for part in ("validation", "train") for rows in samples[part].values()]
    for pool in pools:
        for sample in pool:
            keys = {image.key for image in sample.images}
            if keys and not keys & seen:
                seen |= keys
                chosen.append(sample)
            if len(chosen) >= run_folder.PROBE_SAMPLES:
                return chosen
    return chosen or [pools[0][0]]


def _images(samples: Mapping[str, Mapping[str, Sequence[Sample]]]) -> dict[str, ImageRef]:
    return {
        image.key: image
        for part in samples.values()
        for rows in part.values()
        for sample in rows
        for image in sample.images
    }


def _forget_after(metrics: Path, stage: str, last: Path | None) -> None:
    """Drops metric lines of steps that will be taken again."""
    if not metrics.is_file():
        return
    step = int(last.name.removeprefix("checkpoint-")) if last else 0
    lines = [json.loads(line) for line in metrics.read_text().splitlines() if line.strip()]
    kept = [line for line in lines if line["stage"] != stage or line["step"] <= step]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in kept))
