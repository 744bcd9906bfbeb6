"""Scores a run or a stock folder on the test rows of a recipe, every objective by its own metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lockadapt import processes
from lockadapt.architectures import inputs_of
from lockadapt.building.cache_trial import measured_policy, rows_to_try
from lockadapt.building.experiment import Experiment, read_experiment
from lockadapt.console import Reporter
from lockadapt.data.encode import Encoder
from lockadapt.data.model_encoder import model_encoder
from lockadapt.data.pixels import ImageInputs
from lockadapt.data.sample import Sample
from lockadapt.data.scan import scan_images
from lockadapt.errors import DataError, RecipeError
from lockadapt.evaluation.context import PROBE_IMAGES, PredictionContext
from lockadapt.evaluation.target import Target, make_ready, open_target
from lockadapt.features.inputs import IMAGE_TOKENS, token_inputs, tower_inputs
from lockadapt.features.policy import ImagePolicy
from lockadapt.files import write_json, write_text
from lockadapt.models.freed_memory import keeping_freed_memory
from lockadapt.objectives import Objective
from lockadapt.runs.card import write_card
from lockadapt.runs.run import LoadedRun, Run
from lockadapt.runs.run_folder import PREDICTIONS, SCORES


def evaluate_folder(
    source: str | Path | Run | LoadedRun,
    recipe_file: Path | None,
    overrides: Sequence[str],
    blind: bool,
    predictions: Path | None,
    reporter: Reporter,
) -> dict[str, Any]:
    """Scores a folder by objective; a run's scores are kept in its `evaluation.json` and model card as well.

    Several processes, which all call, answer the same questions together; the first one writes.

    Args:
        source: a run, open or its folder; or a stock folder.
        recipe_file: whose test rows and objectives are taken; None: those it was trained with.
        overrides: `key.path=value`.
        blind: whether every image is replaced by the mean image.
        predictions: JSONL file of the predictions; None: none.
        reporter: told of progress.

    Returns:
        Scores by objective.

    Raises:
        RecipeError: a stock folder that says nothing of its recipe, and none is given.
        DataError: no objective has test rows.
    """
    processes.join()
    if not processes.is_first():
        reporter = Reporter(quiet=True)
    target = open_target(source)
    if recipe_file is None and target.experiment is None:
        raise RecipeError(
            "the folder does not say which recipe it was trained with",
            where="--recipe",
            fix="add --recipe FILE",
        )
    experiment = read_experiment(recipe_file, overrides, target.experiment, reporter.note)
    # A model that never saw an image is judged as it was trained.
    blind = blind or experiment.blind
    with keeping_freed_memory():
        scores, rows = evaluate(target, experiment, blind, reporter)

    def write() -> None:
        if predictions is not None:
            write_predictions(predictions, rows)
        if target.run is not None and recipe_file is None:
            known = target.run.scores()
            known["blind" if blind else "seeing"] = scores
            write_json(target.run.folder / SCORES, known)
            if blind == experiment.blind:
                write_predictions(target.run.folder / PREDICTIONS, rows)
            write_card(target.run)

    processes.first(write)
    return scores


def write_predictions(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes predictions as JSON lines.

    Args:
        file: is replaced.
        rows: one a line.

    Raises:
        DiskError: it cannot be written.
    """
    write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def evaluate(
    target: Target, experiment: Experiment, blind: bool, reporter: Reporter
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Scores by objective, and gives predictions (objective, where, question, answer, truth, images).

    Args:
        target: what is scored.
        experiment: its test rows and objectives.
        blind: whether every image is replaced by the mean image.
        reporter: told of progress.

    Returns:
        Scores by objective, and the predictions.

    Raises:
        DataError: no objective has test rows.
        RecipeError: as `make_ready`.
    """
    scores: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    samples_of = experiment.samples("test", note=reporter.note, most=experiment.evaluation.samples)
    if not samples_of:
        raise DataError("no objective has test rows", where="objectives", fix="add `test` to an objective")
    judge = Judge(target, experiment, blind, reporter)
    for name, samples in samples_of.items():
        objective = experiment.objectives[name]
        label = objective.scored_as if name == objective.kind else name
        training = partial(_training_rows, experiment, name)
        scores[label], predictions = judge.score(objective, samples, name, training)
        rows += [{"objective": name, **row} for row in predictions]
    return scores, rows


def _training_rows(experiment: Experiment, name: str) -> Sequence[Sample]:
    return experiment.samples("train", [name], most=PROBE_IMAGES)[name]


@dataclass(frozen=True)
class Judge:
    """Scores samples with an objective, as an experiment says.

    Attributes:
        target: what is scored.
        experiment: how many samples, how images are kept, and how answers are made.
        blind: whether every image is replaced by the mean image.
        reporter: told of progress.
    """

    target: Target
    experiment: Experiment
    blind: bool
    reporter: Reporter

    def score(
        self,
        objective: Objective,
        samples: Sequence[Sample],
        name: str,
        training: Callable[[], Sequence[Sample]] | None = None,
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Scores the samples whose images can be opened.

        Args:
            objective: by which.
            samples: test rows; the first `evaluation.samples` count.
            name: for progress.
            training: training rows, which a probe learns from.

        Returns:
            Scores, and the predictions.

        Raises:
            DataError: an image cannot be opened, where the experiment does not skip those.
            RecipeError: as `make_ready`.
        """
        target, experiment, data = self.target, self.experiment, self.experiment.data
        samples = samples[: experiment.evaluation.samples]
        scan = scan_images(samples, data.max_pixels, data.on_bad_image, data.max_bad_fraction)
        samples = scan.good
        make_ready(target, objective)
        encoder = model_encoder(target.model, target.processor, data.max_length, data.allow_special_tokens)
        policy = _policy(target, experiment, self.blind, self.reporter)
        context = PredictionContext(
            target.model,
            encoder,
            _images(target, objective, policy, samples, encoder),
            experiment.evaluation.batch_size,
            self.reporter.counted(f"{name} test"),
            experiment.evaluation.method,
            None if data.packing == "none" else data.max_row_tokens,
            training,
            data.max_pixels,
            self.reporter.note,
            experiment.evaluation.beams,
            dealt=True,
        )
        return objective.evaluate(context, samples)


def _policy(target: Target, experiment: Experiment, blind: bool, reporter: Reporter) -> ImagePolicy:
    return ImagePolicy(
        experiment.features,
        experiment.data.max_pixels,
        blind,
        target.mean,
        projector_trains=experiment.projector_trains,
        note=reporter.note,
        progress=reporter.counted("running what is frozen on images"),
    )


def _images(
    target: Target,
    objective: Objective,
    policy: ImagePolicy,
    samples: Sequence[Sample],
    encoder: Encoder,
) -> ImageInputs:
    images = {image.key: image for sample in samples for image in sample.images}
    reused = policy.blind or sum(len(sample.images) for sample in samples) > len(images)
    # Unlike training, evaluation sees each use of an image once: what is not used again is not worth the
    # memory.
    if policy.settings.choice == "memory" and not reused:
        policy = replace(policy, settings=replace(policy.settings, choice="none"))
    if objective.frozen in IMAGE_TOKENS:
        return token_inputs(target.model, target.processor, images, policy)
    if reused or policy.settings.choice != "auto":
        policy = _measured(policy, target, encoder, samples)
    together = [sample.images for sample in samples]
    return tower_inputs(target.model, target.processor, images, policy, reused, together)


def _measured(
    policy: ImagePolicy, target: Target, encoder: Encoder, samples: Sequence[Sample]
) -> ImagePolicy:
    """The policy with why nothing may be kept of images, as the run found out or as is measured now."""
    findings = (target.run.record.admission if target.run is not None else None) or ()
    for finding in findings:
        if finding["probe"] == "cache":
            return replace(policy, refused=finding["detail"] if finding["result"] == "off" else None)
    rows = encoder.encode(rows_to_try(samples)).encoded if inputs_of(target.processor).stock else []
    return measured_policy(policy, target.model, target.processor, rows)
