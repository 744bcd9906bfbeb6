"""The steps of a run as functions: read a recipe, train, evaluate, merge, export, verify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lockadapt import processes
from lockadapt.api.results import EvaluationResult, ExportResult, MergeResult, VerifyResult
from lockadapt.console import Reporter
from lockadapt.errors import RecipeError
from lockadapt.evaluation.embedder import Embedder
from lockadapt.evaluation.evaluate import evaluate_folder
from lockadapt.evaluation.target import open_target
from lockadapt.exports.export import export_run
from lockadapt.exports.merge_command import MergeRequest, merge_command
from lockadapt.exports.verify import verify_folder
from lockadapt.recipe.read import LoadedRecipe
from lockadapt.recipe.read import load_recipe as read
from lockadapt.report.follow import follow
from lockadapt.report.write import write_report
from lockadapt.rewards import RewardAccess
from lockadapt.runs.run import LoadedRun, Run
from lockadapt.training.loop import TrainResult
from lockadapt.training.loop import train as run_recipe


def load_recipe(recipe: str | Path | Mapping[str, Any], *, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read and check a recipe; no model and no row is opened.

    Args:
        recipe: a YAML file, or its sections and keys as plain values.
        overrides: `key.path=value`, as on the command line, such as `lora.rank=32`; they win over the recipe.

    Returns:
        The checked recipe, and where each of its values was given.

    Raises:
        RecipeError: the recipe is wrong; the message holds a line for each problem.
        SafetyError: the file asks for a Python object.
    """
    if isinstance(recipe, Mapping):
        return read(None, overrides, recipe)
    return read(recipe, overrides)


def train(
    recipe: str | Path | Mapping[str, Any] | LoadedRecipe,
    *,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    quiet: bool = False,
    allow_reward_code: bool = False,
) -> TrainResult:
    """Train a recipe into a run folder, as `lockadapt train` does.

    Args:
        recipe: a YAML file, its values, or what `load_recipe` returned.
        output: the run folder, new or empty unless `resume`; default: the recipe's own `output`.
        overrides: `key.path=value`; they win over the recipe.
        resume: go on from the last complete checkpoint in the run folder.
        quiet: say nothing on stderr.
        allow_reward_code: let the recipe's `rewards.function` run a function from a file.

    Returns:
        Where the run is, its steps and its speed.

    Raises:
        RecipeError: the recipe is wrong, or no run folder is named.
        LockadaptError: the run cannot go on; children say why (`lockadapt.errors`). What was written stays
            for `resume`.
    """
    reporter = Reporter(quiet)
    if not isinstance(recipe, LoadedRecipe):
        recipe = load_recipe(recipe, overrides=overrides)
        for notice in recipe.notices:
            reporter.note(f"note: {notice}")
    elif overrides:
        recipe = load_recipe(recipe.recipe.model_dump(mode="json"), overrides=overrides)
    folder = output if output is not None else recipe.recipe.output
    if folder is None:
        raise RecipeError("no run folder given", where=str(recipe.path or "recipe"), fix="add output=FOLDER")
    access = RewardAccess(allow_reward_code, lambda run: Embedder.open(open_target(Path(run))))
    if not recipe.recipe.report:
        return run_recipe(recipe.recipe, folder, reporter, resume, (), access)
    trained = run_recipe(recipe.recipe, folder, reporter, resume, [follow], access)
    processes.first(lambda: write_report([trained.output]))
    return trained


def evaluate(
    run: str | Path | Run | LoadedRun,
    *,
    recipe: str | Path | None = None,
    overrides: Sequence[str] = (),
    blind: bool = False,
    predictions: str | Path | None = None,
    quiet: bool = False,
) -> EvaluationResult:
    """Score a run or a merged folder on its test rows, as `lockadapt eval` does.

    The scores of a run are also kept in its folder, unless `recipe` is given.

    Args:
        run: a run folder, a merged folder, or what `load_run` returned, whose model is not loaded again.
        recipe: YAML whose test rows to use; default: the one that the model was trained with.
        overrides: `key.path=value`, such as `evaluation.samples=200`.
        blind: show the mean image in place of every image.
        predictions: a JSONL file to write questions, answers and references to.
        quiet: say nothing on stderr.

    Returns:
        Scores by objective.

    Raises:
        RecipeError: the folder does not say which recipe it was trained with, or the run is not finished.
        DataError: no objective has test rows.
        VerificationError: the run is damaged.
    """
    rows = None if predictions is None else Path(predictions)
    other = None if recipe is None else Path(recipe)
    return EvaluationResult(evaluate_folder(run, other, overrides, blind, rows, Reporter(quiet)))


def merge(
    run: str | Path | Run | LoadedRun,
    output: str | Path,
    *,
    base: str = "dequantized",
    adapters: Sequence[str] = (),
    quiet: bool = False,
) -> MergeResult:
    """Merge a run into one stock folder and prove it, as `lockadapt merge` does.

    Args:
        run: a run; with `adapters`, folder or Hub id of the model that they are added to.
        output: a new folder; it appears only when every check has passed.
        base: of a quantized run: `dequantized`, as it was trained on, or `original`, from before that.
        adapters: PEFT folders or runs to add, each with an optional weight: `runs/a:0.7`.
        quiet: say nothing on stderr.

    Returns:
        The folder, and the numbers of its proof.

    Raises:
        RecipeError: `output` is not empty, the run trained a dual encoder, or the arguments exclude one
            another.
        VerificationError: the reloaded folder differs from the trained model; nothing is left at `output`.
    """
    request = MergeRequest(str(_folder(run)), Path(output), adapters, base)
    return MergeResult.of(merge_command(request, Reporter(quiet)))


def export(
    run: str | Path | Run | LoadedRun,
    *,
    to: str,
    output: str | Path,
    llama_cpp: str | Path | None = None,
    quiet: bool = False,
) -> ExportResult:
    """Write a run as a folder for another client and prove it, as `lockadapt export` does.

    Args:
        run: a run.
        to: `merged`, `bridge`, `adapter`, `adapter-full` or `gguf` for runs that answer; `dual`,
            `sentence-transformers` or `colpali` for runs that embed.
        output: a new folder; it appears only when every check has passed.
        llama_cpp: folder of the llama.cpp sources, for `gguf`.
        quiet: say nothing on stderr.

    Returns:
        The folder, and the numbers of its proof.

    Raises:
        RecipeError: there is no such target, or it cannot hold this run, and why.
        VerificationError: the client's outputs differ from the trained model's; nothing is left at `output`.
    """
    sources = None if llama_cpp is None else Path(llama_cpp)
    return ExportResult.of(export_run(_opened(run), to, Path(output), Reporter(quiet), sources))


def verify(
    folder: str | Path, *, against: str | Path | Run | LoadedRun | None = None, quiet: bool = False
) -> VerifyResult:
    """Check a model folder in a fresh process, as `lockadapt verify` does.

    Args:
        folder: a merged or exported folder, made by lockadapt or any other tool; nothing is written to it.
        against: the run whose outputs the model must reproduce; default: the folder is checked by itself.
        quiet: say nothing on stderr.

    Returns:
        What was measured.

    Raises:
        VerificationError: a file, a key or an output is not what it should be.
        RecipeError: the folder is of a kind that cannot be verified.
    """
    trained = None if against is None else _opened(against)
    return VerifyResult.of(verify_folder(Path(folder), trained, Reporter(quiet)))


def _folder(run: str | Path | Run | LoadedRun) -> str | Path:
    """Of a run, wherever it stands."""
    opened = _opened(run)
    return opened.folder if isinstance(opened, Run) else opened


def _opened(run: str | Path | Run | LoadedRun) -> Path | Run:
    """A run that is open already, or the folder to open."""
    if isinstance(run, LoadedRun):
        return run.run
    return run if isinstance(run, Run) else Path(run)
