"""Compares both ways to merge a quantized run: distance from what was trained, and scores."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lockadapt.architectures.load import load_model
from lockadapt.building.experiment import Experiment, build_experiment
from lockadapt.console import Reporter
from lockadapt.errors import RecipeError
from lockadapt.evaluation.evaluate import evaluate
from lockadapt.evaluation.target import Target, target_of
from lockadapt.exports.proofs.merged_folder import compare_logits, reference_answers
from lockadapt.exports.stock_folder import BaseMode, write_stock
from lockadapt.models.device import choose_device, stored_bytes
from lockadapt.runs.run import Run, as_run

UNMERGED = "unmerged"
MODES: tuple[BaseMode, ...] = ("dequantized", "original")


def compare_merges(source: Path | Run, samples: int | None, reporter: Reporter) -> dict[str, Any]:
    """Merges a run both ways into temporary folders, and measures each; nothing is kept.

    Args:
        source: a finished run, or its folder; of a run that was not quantized both ways are one.
        samples: of each test set; default: as many as the recipe says.
        reporter: told of progress.

    Returns:
        `{"unmerged": {"scores"}, "dequantized": {"max_abs_logit_diff", "kl", "top1_agreement", "scores"},
        "original": {…}}`; logits are compared on the run's probe with what was trained; scores are those of
        `lockadapt eval`.

    Raises:
        RecipeError: a dual encoder, which has no logits.
    """
    run = as_run(source)
    if run.dual:
        raise RecipeError(
            "a dual encoder has no logits to compare", where=str(run.folder), fix="compare with eval"
        )
    experiment = run.experiment
    if samples is not None:
        shorter = run.recipe.evaluation.model_copy(update={"samples": samples})
        experiment = build_experiment(run.recipe.model_copy(update={"evaluation": shorter}))
    probe = run.probe()
    trained = run.load("dequantized")
    expected = reference_answers(trained.model, trained.processor, probe).logits
    del trained
    reporter.note("scoring the run")
    target = target_of(run)
    mean = target.mean
    report: dict[str, Any] = {UNMERGED: {"scores": _scores(target, experiment, reporter)}}
    del target  # before the next model is loaded
    for mode in MODES:
        with tempfile.TemporaryDirectory(prefix="lockadapt-") as scratch:
            folder = Path(scratch) / "merged"
            folder.mkdir()
            reporter.note(f"merging, base {mode}")
            write_stock(run, folder, base=mode)
            model, processor = load_model(folder, run.dtype)
            model.to(choose_device(stored_bytes(folder)))
            logits = reference_answers(model, processor, probe).logits
            target = Target(model, processor, run.experiment, None, mean, folder)
            report[mode] = {
                **compare_logits(expected, logits, run.dtype),
                "scores": _scores(target, experiment, reporter),
            }
    return report


def comparison_text(report: Mapping[str, Any]) -> str:
    """A table for the terminal: a line a way."""
    names = sorted(
        {f"{name} {key}" for entry in report.values() for name, key, _ in _numbers(entry["scores"])}
    )
    lines = [f"{'base':<12} {'KL':>9} {'top-1':>7} {'max |d|':>9}  " + "  ".join(names)]
    for mode, entry in report.items():
        scores = {f"{name} {key}": value for name, key, value in _numbers(entry["scores"])}
        numbers = (
            f"{entry['kl']:9.2e} {entry['top1_agreement']:7.4f} {entry['max_abs_logit_diff']:9.2e}"
            if "kl" in entry
            else f"{'-':>9} {'-':>7} {'-':>9}"
        )
        values = "  ".join(f"{scores.get(name, float('nan')):>{len(name)}.4f}" for name in names)
        lines.append(f"{mode:<12} {numbers}  {values}")
    return "\n".join(lines)


def _numbers(scores: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    return [
        (name, key, float(value))
        for name, values in scores.items()
        if isinstance(values, Mapping)
        for key, value in values.items()
        if isinstance(value, (int, float)) and key != "n"
    ]


def _scores(target: Target, experiment: Experiment, reporter: Reporter) -> dict[str, Any]:
    return evaluate(target, experiment, experiment.blind, reporter)[0]
