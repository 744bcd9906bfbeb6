"""Runs as models of lmms-eval: the answers of `lockadapt eval`, whichever of the two asks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import lockadapt
from tests.support.rows import pictures
from tests.support.runs import values

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed (extra lmms)")

QUESTION = "what color is the shape?"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=["none", "nf4"])
def run(request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lmms")
    recipe = values(tiny, folder)
    recipe["model"]["quantization"] = request.param
    recipe["training"]["steps"] = 60
    return lockadapt.train(recipe, output=folder / "run", quiet=True).output


def asked(messages: list[Any], **options: Any) -> list[Any]:
    """Requests as lmms-eval makes them, document by document."""
    return [
        SimpleNamespace(args=("ctx", lambda document: document, options, number, "task", "test"))
        for number in range(len(messages))
    ]


def said(text: str, *images: Any) -> list[Any]:
    shown = [{"type": "image", "url": image} for image in images]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


def test_answers_are_the_predictors_for_runs_and_merged_folders(run: Path, tmp_path: Path) -> None:
    from lockadapt.evaluation.lmms_eval import Lockadapt

    files = list(pictures(tmp_path).values())
    shown: list[Any] = [files[0], Image.open(files[1]), None, files[3], files[0]]
    messages = [said(QUESTION, *([] if image is None else [image])) for image in shown]
    for message in messages:
        for part in message[0]["content"]:
            part |= {"url": str(part["url"])} if isinstance(part.get("url"), Path) else {}
    lockadapt.merge(run, tmp_path / "merged", quiet=True)
    for folder in (run, tmp_path / "merged"):
        expected = lockadapt.Predictor(folder).answers(shown, [QUESTION] * 5, max_new_tokens=4)
        model = Lockadapt(str(folder), batch_size="2")
        model.task_dict["task"] = {"test": messages}
        assert model.generate_until(asked(messages, max_new_tokens=4)) == expected


def test_an_answer_ends_before_what_the_task_ends_it_with() -> None:
    from lockadapt.evaluation.lmms_eval import _until

    assert _until("red\n\nBlue", ["\n\n"]) == "red"
    assert _until("red. Blue", "Blue") == "red. "
    assert _until("red", None) == _until("red", ["", "x"]) == "red"


def test_pictures_keep_their_places_in_the_text(tmp_path: Path) -> None:
    from lockadapt.errors import DataError, RecipeError
    from lockadapt.evaluation.lmms_eval import _conversation

    red, blue = (str(path) for path in list(pictures(tmp_path).values())[:2])
    first, second = ({"type": "image", "url": file} for file in (red, blue))
    parts = [first, {"type": "text", "text": "left, "}, second, {"type": "text", "text": "right?"}]
    system = {"role": "system", "content": "Be brief."}
    sample = _conversation([system, {"role": "user", "content": parts}], "here")
    assert [turn.role for turn in sample.turns] == ["system", "user", "assistant"]
    assert (sample.turns[1].text, sample.turns[1].places) == ("left, right?", (0, 6))
    assert [str(image.path) for image in sample.images] == [red, blue]
    with pytest.raises(DataError, match="video"):
        _conversation([{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}], "here")
    with pytest.raises(RecipeError, match="not the user's"):
        _conversation([{"role": "assistant", "content": "yes"}], "here")


@pytest.mark.real
def test_easy_vqa_scores_as_in_eval_to_the_sample(real: Path, tmp_path: Path) -> None:
    """512 questions, asked by lmms-eval's own command, which finds the model by its entry point."""
    data = real / "data" / "easy-vqa"
    rows = json.loads((data / "test" / "questions.json").read_text())[:512]
    run = _trained(real, tmp_path)
    ours = tmp_path / "ours.jsonl"
    scores = lockadapt.evaluate(run, predictions=ours, quiet=True).scores["vqa"]
    assert scores["n"] == len(rows)
    answers = [json.loads(line)["answer"] for line in ours.read_text().splitlines()]
    assert len(set(answers)) > 1

    _task(tmp_path / "task", [(q, a, data / "test" / "images" / f"{i}.png") for q, a, i in rows])
    _entry_point(tmp_path / "installed")
    paths = [str(ROOT), *sys.path, str(tmp_path / "installed")]
    command = [sys.executable, "-m", "lmms_eval", "--model", "lockadapt", "--tasks", "easy_vqa_here"]
    command += ["--model_args", f"pretrained={run}", "--batch_size", "64", "--log_samples"]
    command += ["--include_path", str(tmp_path / "task"), "--output_path", str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, env=environment | {"HF_HOME": str(tmp_path / "hf")}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [samples] = (tmp_path / "out").rglob("*samples_easy_vqa_here.jsonl")
    theirs = {row["doc_id"]: row for row in map(json.loads, samples.read_text().splitlines())}
    given = [theirs[number]["filtered_resps"] for number in range(len(rows))]
    assert [text if isinstance(text, str) else text[0] for text in given] == answers
    assert sum(row["accuracy"] for row in theirs.values()) / len(rows) == scores["accuracy"]


def _trained(real: Path, folder: Path) -> Path:
    rows = {"format": "jsonl", "columns": {"question": 0, "answer": 1, "image": 2}, "image_name": "{}.png"}

    def half(name: str, limit: int) -> dict[str, Any]:
        source = real / "data" / "easy-vqa" / name
        return {
            **rows,
            "path": str(source / "questions.json"),
            "images": str(source / "images"),
            "limit": limit,
        }

    recipe = {
        "model": {
            "llm": str(real / "llm" / "tinystories-656k"),
            "tower": str(real / "tower" / "mobilenetv2-1.0-224"),
            "image_size": 128,
        },
        "objectives": {"vqa": {"train": half("train", 600), "test": half("test", 512)}},
        "training": {"steps": 40, "batch_size": 32, "learning_rate": 3e-3, "projector_learning_rate": 3e-3},
        "evaluation": {"method": "generate"},
    }
    return lockadapt.train(recipe, output=folder / "run", quiet=True).output


def _task(folder: Path, rows: list[tuple[str, str, Path]]) -> None:
    folder.mkdir()
    lines = [json.dumps({"question": q, "answer": a, "image": str(image)}) for q, a, image in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "utils.py").write_text(
        "from PIL import Image\n"
        "def visual(doc): return [Image.open(doc['image'])]\n"
        "def text(doc, lmms_eval_specific_kwargs=None): return doc['question']\n"
        "def results(doc, results): return {'accuracy': float(results[0].lower() == doc['answer'].lower())}\n"
    )
    (folder / "task.yaml").write_text(
        "task: easy_vqa_here\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {folder / 'rows.jsonl'}}}}}\n"
        "test_split: test\noutput_type: generate_until\ngeneration_kwargs: {max_new_tokens: 64}\n"
        "doc_to_visual: !function utils.visual\ndoc_to_text: !function utils.text\ndoc_to_target: answer\n"
        "process_results: !function utils.results\n"
        "metric_list: [{metric: accuracy, aggregation: mean, higher_is_better: true}]\n"
    )


def _entry_point(folder: Path) -> None:
    """What installing lockadapt writes of the entry points in pyproject.toml."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][
        "lmms_eval.models"
    ]
    (folder / "points-0.dist-info").mkdir(parents=True)
    (folder / "points-0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: points\nVersion: 0\n"
    )
    lines = "".join(f"{name} = {target}\n" for name, target in points.items())
    (folder / "points-0.dist-info" / "entry_points.txt").write_text(f"[lmms_eval.models]\n{lines}")
