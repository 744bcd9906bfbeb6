"""`quickstart --real`: SmolLM2-135M, which knows nothing of the scenes, learns to answer questions."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from lockadapt.console import Reporter
from lockadapt.evaluation.evaluate import evaluate_folder
from lockadapt.evaluation.predictor import Predictor
from lockadapt.exports.merge import merge_run
from lockadapt.files import write_json
from lockadapt.planning.arithmetic import gemm_speed
from lockadapt.quickstart.scenes import make_dataset
from lockadapt.quickstart.show import show
from lockadapt.quickstart.smollm2 import fetch_llm
from lockadapt.quickstart.tour import ASSETS, MARK, make_room, wording_alone
from lockadapt.recipe.read import load_recipe
from lockadapt.report.write import write_report
from lockadapt.training.loop import train

TEXT_QUESTION = "What is the capital of France?"


def real_tour(
    output: Path, reporter: Reporter, overrides: tuple[str, ...] = (), scenes: tuple[int, int] = (600, 40)
) -> dict[str, Any]:
    """Run the quickstart with SmolLM2-135M-Instruct; write data, run, merged model and `unseen.png`.

    Args:
        output: a new folder, or the folder of an earlier quickstart, which is emptied first.
        reporter: where progress is shown.
        overrides: recipe overrides, e.g. fewer steps or another LLM.
        scenes: number of scenes created for training and for testing.

    Returns:
        Scores, answers before and after, the merge's proof and summary lines.

    Raises:
        RecipeError: `output` contains anything else.
        SetupError: the LLM is not in the cache and cannot be downloaded.
    """
    started = time.perf_counter()
    make_room(output)
    data, run, merged = output / "data", output / "run", output / "merged"
    given = any(change.startswith("model.llm=") for change in overrides)
    llm = "" if given else str(fetch_llm(reporter))
    reporter.note("creating the dataset")
    make_dataset(data, train=scenes[0], test=scenes[1])
    loaded = load_recipe(None, overrides, real_recipe(data, llm, run, quick_dtype()))
    trained = train(loaded.recipe, run, reporter)
    reporter.note("evaluating answers, with images and without")
    scores = evaluate_folder(run, None, (), False, output / "predictions.jsonl", reporter)
    blind = evaluate_folder(run, None, (), True, output / "answers_blind.jsonl", reporter)
    proof = merge_run(run, merged, reporter)
    show(_lines(output / "predictions.jsonl"), [], data, output / "unseen.png")
    report = write_report([run], output / "report.html")["output"]
    result: dict[str, Any] = {
        "vqa": scores["vqa"],
        "blind": blind["vqa"],
        "wording_alone": wording_alone(data / "train.jsonl", data / "test.jsonl"),
        "asked": _asked(run, merged, data),
        "merge": proof,
        "train_seconds": trained.seconds,
        "seconds": round(time.perf_counter() - started, 1),
        "picture": str(output / "unseen.png"),
        "report": report,
    }
    write_json(output / MARK, result)
    return {**result, "summary": _summary(result, output)}


def real_recipe(data: Path, llm: str, output: Path, dtype: str = "auto") -> dict[str, Any]:
    """Return the recipe that `quickstart --real` trains.

    Args:
        data: what `make_dataset` wrote.
        llm: folder of the LLM.
        output: run folder.
        dtype: of the LLM.

    Returns:
        The recipe as plain values, for `load_recipe`.
    """
    rows = {half: {"format": "jsonl", "path": str(data / f"{half}.jsonl")} for half in ("train", "test")}
    return {
        "model": {"llm": llm, "tower": str(ASSETS / "tower"), "feature_layer": -1, "dtype": dtype},
        "lora": {"rank": 16, "targets": ["q_proj", "v_proj"]},
        "objectives": {"vqa": {**rows, "max_new_tokens": 6}},
        "training": {
            "steps": 420,
            "batch_size": 10,
            "learning_rate": 1e-3,
            "projector_learning_rate": 3e-3,
            "warmup": 0.05,
            "log_every": 10,
        },
        "output": str(output),
    }


def quick_dtype() -> str:
    """Return the dtype to compute in: CPUs differ by a factor of ten in bfloat16, so it is tried."""
    if torch.cuda.is_available():
        return "auto"
    speed = {dtype: gemm_speed(dtype, torch.device("cpu")) for dtype in (torch.float32, torch.bfloat16)}
    return "bfloat16" if speed[torch.bfloat16] > 1.25 * speed[torch.float32] else "float32"


def _asked(run: Path, merged: Path, data: Path) -> dict[str, dict[str, str]]:
    """The same two questions to the model as it was joined and as it was merged, answered greedily."""
    row = next(row for row in _lines(data / "test.jsonl") if row["answer_type"] == "colour")
    questions = [row["question"], TEXT_QUESTION]
    images = [data / row["image"], None]
    answers = [
        Predictor(folder).answers(images, questions, max_new_tokens=24) for folder in (run / "base", merged)
    ]
    keys = ("question", "truth", "before", "after")
    truths = (row["answer"], "Paris")
    values = zip(questions, truths, *answers, strict=True)
    return {
        name: dict(zip(keys, entry, strict=True))
        for name, entry in zip(("image", "text"), values, strict=True)
    }


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _summary(result: dict[str, Any], output: Path) -> list[str]:
    types = ", ".join(f"{name} {value:.2f}" for name, value in result["vqa"]["by_answer_type"].items())
    vqa, merge, asked = result["vqa"], result["merge"], result["asked"]
    return [
        f"VQA accuracy on unseen combinations: {vqa['accuracy']:.3f} ({types}; n = {vqa['n']})",
        f"  with the mean image instead: {result['blind']['accuracy']:.3f}; most frequent answer to "
        f"each question: {result['wording_alone']:.3f}",
        *(
            f"{entry['question']}{' (no image)' if name == 'text' else ''} before: {entry['before']!r}, "
            f"after: {entry['after']!r}"
            for name, entry in asked.items()
        ),
        f"merged and reloaded in a fresh process by {merge['model_class']}: same likeliest token at "
        f"{merge['top1_agreement']:.1%} of places, KL {merge['kl']:.1e} (without LoRA: KL "
        f"{merge['adapter_kl']:.1f}), {merge['answers_equal']} of {merge['answers']} answers equal",
        f"training: {result['train_seconds']:.0f} s, total: {result['seconds']:.0f} s",
        f"overview: {result['picture']}   report: {result['report']}   run: {output / 'run'}   "
        f"Transformers model: {output / 'merged'}",
    ]
