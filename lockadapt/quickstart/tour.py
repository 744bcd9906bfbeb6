"""The quickstart: train on built-in models and images, evaluate, merge, verify and show the result."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from PIL import Image

from lockadapt.console import Reporter
from lockadapt.errors import RecipeError
from lockadapt.evaluation.evaluate import evaluate_folder
from lockadapt.evaluation.generate import generate_pictures
from lockadapt.exports.merge import merge_run
from lockadapt.files import write_json
from lockadapt.objectives.image_generation import ImageGenerationConfig
from lockadapt.quickstart.prompts import make_prompts
from lockadapt.quickstart.recipe import quickstart_recipe
from lockadapt.quickstart.scenes import SEEN, make_dataset
from lockadapt.quickstart.show import show
from lockadapt.recipe.read import load_recipe
from lockadapt.report.write import write_report
from lockadapt.training.loop import train

ASSETS = Path(__file__).parent / "assets"
MARK = "quickstart.json"
DRAWN = 12
QUESTIONS_ONLY = tuple(f"objectives.{name}.test=null" for name in ("caption", "itc", "t2i"))


def tour(
    output: Path, reporter: Reporter, overrides: tuple[str, ...] = (), scenes: tuple[int, int] = (3000, 300)
) -> dict[str, Any]:
    """Run the quickstart: write data, run, merged model and `unseen.png`; return scores and proof.

    Args:
        output: a new folder, or the folder of an earlier quickstart, which is emptied first.
        reporter: where progress is shown.
        overrides: recipe overrides, e.g. fewer steps.
        scenes: number of scenes created for training and for testing.

    Returns:
        Scores, the merge's proof and summary lines.

    Raises:
        RecipeError: `output` contains anything else.
    """
    started = time.perf_counter()
    make_room(output)
    reporter.note("creating the dataset")
    make_dataset(output / "data", train=scenes[0], test=scenes[1])
    make_prompts(output / "data", train=scenes[0] // 4, test=scenes[1] // 3)
    plain = quickstart_recipe(output / "data", ASSETS, output / "run")
    loaded = load_recipe(None, overrides, plain)
    trained = train(loaded.recipe, output / "run", reporter)
    reporter.note("evaluating answers, captions, retrieval and generated images")
    scores = evaluate_folder(output / "run", None, (), False, output / "predictions.jsonl", reporter)
    blind = evaluate_folder(
        output / "run", None, QUESTIONS_ONLY, True, output / "answers_blind.jsonl", reporter
    )
    proof = merge_run(output / "run", output / "merged", reporter)
    _show(output, plain["objectives"]["t2i"]["temperature"])
    report = write_report([output / "run"], output / "report.html")["output"]
    result: dict[str, Any] = {
        "vqa": scores["vqa"],
        "caption": scores["caption"],
        "retrieval": scores["retrieval"],
        "t2i": scores["t2i"],
        "blind": blind["vqa"],
        "wording_alone": wording_alone(output / "data" / "train.jsonl", output / "data" / "test.jsonl"),
        "merge": proof,
        "train_seconds": trained.seconds,
        "seconds": round(time.perf_counter() - started, 1),
        "picture": str(output / "unseen.png"),
        "report": report,
    }
    write_json(output / MARK, result)
    return {**result, "summary": _summary(result, output)}


def wording_alone(train_rows: Path, test_rows: Path) -> float:
    """Return the test accuracy of each question's most frequent training answer: the best without images."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for line in train_rows.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        answers[row["question"]][row["answer"]] += 1
    common = Counter(answer for counts in answers.values() for answer in counts.elements()).most_common(1)[0][
        0
    ]
    rows = [json.loads(line) for line in test_rows.read_text(encoding="utf-8").splitlines()]
    guesses = [
        answers[r["question"]].most_common(1)[0][0] if answers[r["question"]] else common for r in rows
    ]
    return sum(guess == row["answer"] for guess, row in zip(guesses, rows, strict=True)) / len(rows)


def make_room(output: Path) -> None:
    """Empty an earlier quickstart's folder, or make a new one. Raises RecipeError for any other folder."""
    if output.exists() and any(output.iterdir()):
        if not (output / MARK).is_file():
            raise RecipeError(
                "contains files that are not of a quickstart",
                where=f"--output {output}",
                fix="choose a new folder",
            )
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    # Marked from the start, so that an interrupted quickstart can be repeated.
    write_json(output / MARK, {})


def _show(output: Path, temperature: float) -> None:
    """Generate images of some combinations, and show them with answers, captions and search results."""
    prompts = [f"a {colour} {shape}" for colour, shape in sorted(SEEN)[::2]][:DRAWN]
    made = generate_pictures(
        output / "run", prompts, output / "drawn", ImageGenerationConfig(temperature=temperature), 1
    )
    drawn = [
        (generated["prompt"], Image.open(output / "drawn" / generated["file"]))
        for generated in made["images"]
    ]
    lines = (output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    show([json.loads(line) for line in lines], drawn, output / "data", output / "unseen.png")


def _summary(result: dict[str, Any], output: Path) -> list[str]:
    types = ", ".join(f"{name} {value:.2f}" for name, value in result["vqa"]["by_answer_type"].items())
    caption, merge = result["caption"], result["merge"]
    retrieval, drawn = result["retrieval"]["text_to_image"], result["t2i"]
    return [
        f"VQA accuracy on unseen combinations: {result['vqa']['accuracy']:.3f} ({types}; n = "
        f"{result['vqa']['n']})",
        f"  with the mean image instead: {result['blind']['accuracy']:.3f}; most frequent answer to "
        "each question: "
        f"{result['wording_alone']:.3f}",
        f"captions of unseen combinations: CIDEr {caption['cider']:.2f}, BLEU-4 {caption['bleu4']:.2f}, "
        f"ROUGE-L {caption['rouge_l']:.2f} (n = {caption['n']})",
        f"text-to-image retrieval, R@1 / R@5 / R@10: {retrieval['r1']:.2f} / {retrieval['r5']:.2f} / "
        f"{retrieval['r10']:.2f} (n = {result['retrieval']['n']})",
        f"images generated for seen combinations: probe accuracy {drawn['probe']['accuracy']:.2f}, on "
        "real images "
        f"{drawn['probe']['probe_accuracy_on_real']:.2f} (n = {drawn['n']})",
        f"merged and reloaded in a fresh process by {merge['model_class']}: largest logit difference "
        f"{merge['max_abs_logit_diff']:.1e}, {merge['answers_equal']} of {merge['answers']} answers equal",
        f"training: {result['train_seconds']:.0f} s, total: {result['seconds']:.0f} s",
        f"overview: {result['picture']}   report: {result['report']}   run: {output / 'run'}   "
        f"Transformers model: {output / 'merged'}",
    ]
