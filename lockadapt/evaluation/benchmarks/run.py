"""Scores a run or a model folder on a benchmark whose files a user has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lockadapt.building.experiment import Experiment, read_experiment
from lockadapt.console import Reporter
from lockadapt.data.readers.source import did_you_mean
from lockadapt.data.sample import Sample
from lockadapt.errors import DataError, RecipeError
from lockadapt.evaluation.benchmarks import BENCHMARKS
from lockadapt.evaluation.benchmarks.base import Benchmark, BenchmarkFiles, Score
from lockadapt.evaluation.evaluate import Judge, write_predictions
from lockadapt.evaluation.target import open_target
from lockadapt.models.freed_memory import keeping_freed_memory
from lockadapt.models.hub import hub_is_reachable
from lockadapt.objectives import Objective
from lockadapt.objectives.answer_tokens import AnswerObjective
from lockadapt.objectives.grounding import Grounding


@dataclass(frozen=True)
class BenchmarkRequest:
    """What is asked for.

    Attributes:
        name: a key of `BENCHMARKS`.
        data: folder of the official files, or Hub id of a data set that holds them.
        split: of the benchmark; None: its first.
        prompt: in place of the benchmark's own; None: that one.
        recipe: settings of evaluation and of objectives; None: those that the model was trained with.
        overrides: `key.path=value`.
        blind: whether every image is replaced by the mean image.
        predictions: JSONL file of the predictions; None: none.
    """

    name: str
    data: str
    split: str | None = None
    prompt: str | None = None
    recipe: Path | None = None
    overrides: Sequence[str] = ()
    blind: bool = False
    predictions: Path | None = None


@dataclass(frozen=True)
class BenchmarkAnswers(AnswerObjective):
    """Generated answers, scored as a benchmark does.

    Attributes:
        scorer: of the benchmark.
    """

    kind: ClassVar[str] = "benchmark"

    scorer: Score = lambda samples, answers: {}

    def score(self, samples: Sequence[Sample], predictions: Sequence[str]) -> dict[str, Any]:
        """See `Benchmark.score`."""
        return self.scorer(samples, predictions)


def run_benchmark(source: Path, request: BenchmarkRequest, reporter: Reporter) -> dict[str, Any]:
    """Scores a folder on a benchmark; nothing is written into it.

    Args:
        source: run or model folder.
        request: which benchmark, and how.
        reporter: told of progress.

    Returns:
        `{name: {"split", scores of the benchmark}}`.

    Raises:
        RecipeError: no such benchmark or split; a model folder that says nothing of its recipe; a model that
            does not embed, for a benchmark of retrieval.
        DataError, SafetyError: files are missing or wrong, or cannot be fetched.
    """
    if request.name not in BENCHMARKS:
        raise RecipeError(
            f"there is no benchmark {request.name!r}",
            where="--benchmark",
            fix=did_you_mean(request.name, BENCHMARKS),
        )
    benchmark = BENCHMARKS[request.name]
    split = request.split or benchmark.splits[0]
    if split not in benchmark.splits:
        raise RecipeError(
            f"{request.name} has no split {split!r}",
            where="--split",
            fix=did_you_mean(split, benchmark.splits),
        )
    files = BenchmarkFiles(data_folder(request.data), split, request.prompt or benchmark.prompt)
    samples = benchmark.read(files)
    target = open_target(source)
    if request.recipe is None and target.experiment is None:
        raise RecipeError(
            "the folder does not say which recipe it was trained with",
            where="--recipe",
            fix="add --recipe FILE",
        )
    experiment = read_experiment(request.recipe, request.overrides, target.experiment, reporter.note)
    judge = Judge(target, experiment, request.blind or experiment.blind, reporter)
    with keeping_freed_memory():
        scores, rows = judge.score(_objective(benchmark, experiment, request.name), samples, request.name)
    if request.predictions is not None:
        write_predictions(request.predictions, [{"objective": request.name, **row} for row in rows])
    return {request.name: {"split": split, **scores}}


def data_folder(data: str) -> Path:
    """The folder of a benchmark's files: a local one, or what a Hub id names, fetched into the Hub's cache.

    Args:
        data: a folder, or `owner/name` of a data set on the Hub.

    Returns:
        The folder.

    Raises:
        DataError: neither is there, or the Hub cannot be reached.
    """
    folder = Path(data)
    if folder.is_dir():
        return folder
    looks_like_an_id = data.count("/") == 1 and not folder.parent.exists() and not data.startswith((".", "~"))
    if not looks_like_an_id:
        raise DataError("there is no such folder", where=data, fix="correct --data")
    if not hub_is_reachable():
        raise DataError(
            "there is no such folder, and the Hub cannot be reached",
            where=data,
            fix="correct --data, or connect",
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(data, repo_type="dataset"))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise DataError(
            f"the Hub does not give it: {str(error).splitlines()[0][:200]}",
            where=data,
            fix="check the spelling, and the login where it is private",
        ) from error


def _objective(benchmark: Benchmark, experiment: Experiment, name: str) -> Objective:
    """What answers: the run's own objective where the benchmark is scored by it."""
    if benchmark.score is not None:
        return BenchmarkAnswers(max_new_tokens=benchmark.max_new_tokens, scorer=benchmark.score)
    own = [objective for objective in experiment.objectives.values() if objective.kind == benchmark.kind]
    if own:
        return own[0]
    if benchmark.kind == Grounding.kind:
        return Grounding()
    raise RecipeError(
        f"{name} asks for embeddings of images and texts, which the model was not trained for",
        where="--benchmark",
        fix=f"name a run with an objective of the kind {benchmark.kind}",
    )
