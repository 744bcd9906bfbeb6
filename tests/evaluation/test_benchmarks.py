"""Benchmarks: official files are read, and answers are scored as the official scorers score them.

The references here are written from the published rules; where lmms-eval is installed, which ships the official
scorers of several, its numbers are compared as well.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

import lockadapt
from lockadapt.data.sample import ImageRef, Sample, question_answer
from lockadapt.errors import DataError, LockadaptError, SafetyError
from lockadapt.evaluation.benchmarks import BENCHMARKS
from lockadapt.evaluation.benchmarks import run as module
from lockadapt.evaluation.benchmarks.base import BenchmarkFiles
from lockadapt.evaluation.benchmarks.run import data_folder
from tests.support import command
from tests.support.rows import pictures
from tests.support.runs import values

COLOURS = ("red", "green", "blue", "yellow")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official files of all benchmarks about four coloured pictures, a folder each."""
    import datasets

    root = tmp_path_factory.mktemp("benchmarks")

    def shown(folder: str, pattern: str, suffix: str = ".jpg") -> list[str]:
        (root / folder).mkdir(parents=True, exist_ok=True)
        names = []
        for number, path in enumerate(pictures(root / "drawn").values(), 1):
            names.append(pattern.format(number) + suffix)
            (root / folder / names[-1]).write_bytes(path.read_bytes())
        return names

    def write(name: str, value: Any) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(value if isinstance(value, str) else json.dumps(value))

    shown("vqa-v2/val2014", "COCO_val2014_{:012d}")
    asked = [{"question_id": n, "image_id": n, "question": "what color?"} for n in range(1, 5)]
    people = [[{"answer": c, "answer_id": i} for i in range(10)] for c in COLOURS]
    given = [
        {"question_id": n, "image_id": n, "answers": people[n - 1], "answer_type": "other"}
        | {"multiple_choice_answer": COLOURS[n - 1]}
        for n in range(1, 5)
    ]
    write("vqa-v2/v2_OpenEnded_mscoco_val2014_questions.json", {"questions": asked})
    write("vqa-v2/v2_mscoco_val2014_annotations.json", {"annotations": given})

    shown("gqa/images", "n{}")
    rows = {
        f"0{n}": {
            "question": "What color is it?",
            "imageId": f"n{n}",
            "answer": c,
            "types": {"structural": s},
        }
        for n, (c, s) in enumerate(zip(COLOURS, ("query", "verify", "query", "logical"), strict=True), 1)
    }
    write("gqa/testdev_balanced_questions.json", rows)

    shown("textvqa/train_images", "t{}")
    texts = [
        {
            "question": "what is written?",
            "image_id": f"t{n}",
            "question_id": n,
            "answers": [c] * 6 + ["x"] * 4,
        }
        for n, c in enumerate(COLOURS, 1)
    ]
    write("textvqa/TextVQA_0.5.1_val.json", {"data": texts})

    names = shown("pope/val2014", "COCO_val2014_{:012d}")
    lines = [
        {"question_id": n, "image": name, "text": "Is there a cat in the image?", "label": label}
        for n, (name, label) in enumerate(zip(names, ("yes", "no", "no", "yes"), strict=True))
    ]
    write("pope/coco_pope_random.json", "".join(json.dumps(line) + "\n" for line in lines))

    drawn = [path.read_bytes() for path in pictures(root / "drawn").values()]
    table = {
        "index": [0, 1, 2, 3],
        "question": [f"Which?\nOptions: A: {c}, B: b, C: c, D: d" for c in COLOURS],
        "image": [{"bytes": data, "path": None} for data in drawn],
        "answer": ["A", "B", "C", "D"],
        "category": ["math", "math", "logical reasoning", "math"],
        "l2_category": ["geometry"] * 4,
    }
    (root / "mmstar" / "data").mkdir(parents=True)
    made = datasets.Dataset.from_dict(table).cast_column("image", datasets.Image(decode=False))
    made.to_parquet(root / "mmstar" / "data" / "val-00000.parquet")

    shown("mme/color", "{:03d}")
    shown("mme/code_reasoning/images", "{:03d}", ".png")
    pair = "Is it red? Please answer yes or no.\tYes\nIs it pink? Please answer yes or no.\tNo\n"
    for number in range(1, 5):
        write(f"mme/color/{number:03d}.txt", pair)
        write(f"mme/code_reasoning/questions_answers_YN/{number:03d}.txt", pair)

    names = shown("coco-captions/val2014", "COCO_val2014_{:012d}")
    images = [{"id": n, "file_name": name} for n, name in enumerate(names, 1)]
    captions = [
        {"id": n * 2 + k, "image_id": n, "caption": f"a {c} thing"}
        for n, c in enumerate(COLOURS, 1)
        for k in (0, 1)
    ]
    write("coco-captions/annotations/captions_val2014.json", {"images": images, "annotations": captions})
    split = [
        {
            "filename": name,
            "filepath": "val2014",
            "split": s,
            "sentences": [{"raw": f"a {c} shape"}, {"raw": c}],
        }
        for name, c, s in zip(names, COLOURS, ("test", "test", "test", "train"), strict=True)
    ]
    write("coco-captions/dataset_coco.json", {"images": split})
    shown("flickr30k/flickr30k-images", "COCO_val2014_{:012d}")
    write("flickr30k/dataset_flickr30k.json", {"images": split})

    names = shown("refcoco/train2014", "COCO_train2014_{:012d}")
    boxes = [{"id": n, "image_id": n, "bbox": [2, 2, 10, 10]} for n in range(1, 5)]
    write(
        "refcoco/instances.json",
        {"images": [{"id": n, "file_name": f} for n, f in enumerate(names, 1)], "annotations": boxes},
    )
    refs = [
        {"ref_id": n, "ann_id": n, "image_id": n, "split": "val", "sentences": [{"sent": c}]}
        for n, c in enumerate(COLOURS, 1)
    ]
    write("refcoco/refs(unc).json", refs)
    return root


def read(files: Path, name: str, split: str | None = None) -> list[Sample]:
    benchmark = BENCHMARKS[name]
    chosen = BenchmarkFiles(files / name, split or benchmark.splits[0], benchmark.prompt)
    return benchmark.read(chosen)


@pytest.mark.parametrize(
    ("name", "split", "question", "answers", "references"),
    [
        ("vqa-v2", None, "what color?\nAnswer the question using a single word or phrase.", COLOURS, 10),
        ("gqa", None, "What color is it?\nAnswer the question using a single word or phrase.", COLOURS, 1),
        ("textvqa", None, "What is written?\nAnswer the question using a single word or phrase.", COLOURS, 10),
        ("pope", None, "Is there a cat in the image?\nAnswer the question using a single word or phrase.", ("yes", "no", "no", "yes"), 1),
        ("mmstar", None, "Which?\nOptions: A: red, B: b, C: c, D: d\nAnswer with the option's letter from the given choices directly.", "ABCD", 1),
        ("mme", None, "Is it red? Please answer yes or no.", ("Yes", "No") * 8, 1),
        ("coco-captions", None, "Provide a one-sentence caption for the provided image.", ("a red shape", "a green shape", "a blue shape"), 2),
        ("coco-captions", "val2014", "Provide a one-sentence caption for the provided image.", tuple(f"a {c} thing" for c in COLOURS), 2),
        ("flickr30k", None, "Describe the image.", ("a red shape", "a green shape", "a blue shape"), 2),
        ("refcoco", None, "Locate: red", None, None),
    ],
)  # fmt: skip
def test_official_files_are_read(
    files: Path, name: str, split: str | None, question: str, answers: Any, references: int | None
) -> None:
    samples = read(files, name, split)
    assert samples[0].turns[0].text == question
    assert all(len(sample.images) == 1 for sample in samples)
    if answers is None:
        assert len(samples) == 4
        assert all(len(sample.boxes) == 1 for sample in samples)
        return
    assert [sample.answer for sample in samples] == list(answers)
    assert {max(1, len(sample.references)) for sample in samples} == {references}


def sample(
    answer: str, kind: str | None = None, people: tuple[str, ...] = (), number: str | None = None
) -> Sample:
    extra = {"answer_type": kind, "references": people or (answer,), "sample_id": number}
    return question_answer("?", answer, [ImageRef("a")], "here", **extra)


def test_pope_scores_as_its_evaluate_py() -> None:
    answers = [
        "Yes.",
        "No, there is none",
        "yes. not sure",
        "It is not there",
        "maybe",
        "no",
        "There is a cat",
        "No.",
    ]
    labels = ["yes", "no", "no", "yes", "yes", "no", "no", "no"]
    answered = []
    for text in answers:  # RUCAIBox/POPE evaluate.py, line by line
        if text.find(".") != -1:
            text = text.split(".")[0]
        words = text.replace(",", "").split(" ")
        answered.append(0 if "No" in words or "not" in words or "no" in words else 1)
    true = [int(label == "yes") for label in labels]
    tp = sum(a == 1 and b == 1 for a, b in zip(answered, true, strict=True))
    fp = sum(a == 1 and b == 0 for a, b in zip(answered, true, strict=True))
    fn = sum(a == 0 and b == 1 for a, b in zip(answered, true, strict=True))
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    scores = BENCHMARKS["pope"].score([sample(label) for label in labels], answers)  # type: ignore[misc]
    assert scores == pytest.approx(
        {"accuracy": 5 / 8, "precision": precision, "recall": recall, "n": 8, "yes_ratio": 0.5}
        | {"f1": 2 * precision * recall / (precision + recall)}
    )
    assert (tp, fp, fn) == (2, 2, 1)


def test_mme_scores_as_its_calculation_py() -> None:
    rows = [
        ("color", 1, "yes", "no"),
        ("color", 2, "Yes, it is", "Yes"),
        ("OCR", 1, "no", "No."),
        ("code_reasoning", 1, "I say yes", "no"),
    ]
    samples, answers = [], []
    for subtask, image, first, second in rows:
        samples += [sample(truth, subtask, number=f"{subtask}/{image}") for truth in ("Yes", "No")]
        answers += [first, second]
    scores = BENCHMARKS["mme"].score(samples, answers)  # type: ignore[misc]
    # color: 3 of 4 right and one image of two; OCR: 1 of 2, none; code: "i sa" holds neither, so 1 of 2, none
    assert scores["by_subtask"] == {"color": 75 + 50, "OCR": 50, "code_reasoning": 50}
    assert (scores["perception"], scores["cognition"], scores["n"]) == (175, 50, 8)


def test_mmstar_scores_as_its_eval() -> None:
    def official(prediction: str, truth: str) -> bool:  # MMStar_eval of MMStar-Benchmark/MMStar
        answer, predict = truth.lower().strip(), prediction.lower().strip().replace("\n", " ")
        try:
            if answer == predict[0]:
                return True
            if predict[0] == "(" and answer == predict[1]:
                return True
            if predict[0:7] == "option " and answer == predict[7]:
                return True
            return predict[0:14] == "the answer is " and answer == predict[14]
        except IndexError:
            return False

    answered = ["A", "(b)", "option C", "The answer is D", "B", "", "(", "a: red", "the answer is", "Option"]
    right = ["A", "B", "C", "D", "C", "A", "B", "A", "D", "C"]
    kinds = ["math"] * 7 + ["logical reasoning"] * 3
    scores = BENCHMARKS["mmstar"].score([sample(r, k) for r, k in zip(right, kinds, strict=True)], answered)  # type: ignore[misc]
    expected = [official(a, b) for a, b in zip(answered, right, strict=True)]
    assert expected == [True] * 4 + [False] * 3 + [True, False, False]
    assert scores == {
        "average": pytest.approx((4 / 7 + 1 / 3) / 2),
        "by_category": pytest.approx({"math": 4 / 7, "logical reasoning": 1 / 3}),
        "n": 10,
    }


def test_gqa_scores_by_exact_match() -> None:
    samples = [sample("red", "open"), sample("yes", "binary"), sample("no", "binary")]
    scores = BENCHMARKS["gqa"].score(samples, ["Red.", "yes", "yes"])  # type: ignore[misc]
    assert scores == {"accuracy": pytest.approx(2 / 3), "binary": 0.5, "open": 1.0, "n": 3}


def test_textvqa_scores_as_mmf() -> None:
    people = (
        "coca cola",
        "coca-cola",
        "Coca Cola",
        "coke",
        "coke",
        "coke's",
        "the coke",
        "two",
        "2",
        "pepsi",
    )
    asked = [sample("coke", people=people)] * 5
    answered = ["coca cola", "coke", "2", "Pepsi?", "water"]
    scores = BENCHMARKS["textvqa"].score(asked, answered)  # type: ignore[misc]
    # normalised: coca cola x 3, coke x 3 ("coke 's" differs), 2 x 2, pepsi x 1; leave-one-out over ten people
    three = (3 * 2 / 3 + 7 * 1) / 10
    each = [three, three, (2 * 1 / 3 + 8 * 2 / 3) / 10, (0 + 9 * 1 / 3) / 10, 0]
    assert scores == {"accuracy": pytest.approx(sum(each) / 5), "n": 5}


def test_scorers_agree_with_those_of_lmms_eval() -> None:
    """On invented answers; lmms-eval ships the official normalisation of TextVQA and MME's and POPE's rules."""
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed (extra lmms)")
    from lmms_eval.tasks.mme import utils as mme
    from lmms_eval.tasks.textvqa import utils as textvqa

    draw = random.Random(0)
    words = [
        "two",
        "a red cat",
        "the cat's",
        "2",
        "1,000",
        "don't",
        "dont",
        "st. mary",
        "yes!",
        "coke",
        "U.S.A.",
    ]
    samples, answered, expected = [], [], 0.0
    for _ in range(200):
        people = tuple(draw.choice(words[:4] if draw.random() < 0.5 else words) for _ in range(10))
        answer = draw.choice(words)
        samples, answered = [*samples, sample(people[0], people=people)], [*answered, answer]
        document = {"answers": list(people), "question_id": 0}
        expected += textvqa.textvqa_process_results(document, [answer])["exact_match"]
    ours = BENCHMARKS["textvqa"].score(samples, answered)["accuracy"]  # type: ignore[misc]
    assert ours == pytest.approx(expected / 200, abs=1e-12)

    subtasks = ["color", "count", "OCR"]
    samples, answered, given = [], [], []
    for number in range(60):
        for truth in ("Yes", "No"):
            text = draw.choice(["yes", "no", "Yes.", "No, it", "maybe", "y", "not", "I do not know"])
            text = "no" if len(text) == 1 else text  # lmms-eval alone reads a lone y or n
            kind, key = subtasks[number % 3], str(number)
            samples, answered = [*samples, sample(truth, kind, number=key)], [*answered, text]
            document = {"answer": truth, "category": kind, "question_id": key}
            given.append(mme.mme_process_results(document, [text])["mme_perception_score"])
    assert BENCHMARKS["mme"].score(samples, answered)["perception"] == pytest.approx(
        mme.mme_aggregate_results(given)
    )  # type: ignore[misc]


def test_missing_and_dangerous_files_are_refused(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in BENCHMARKS:
        with pytest.raises(DataError, match="there is no"):
            BENCHMARKS[name].read(BenchmarkFiles(tmp_path, BENCHMARKS[name].splits[0], "{question}{phrase}"))
    (tmp_path / "refs(unc).p").write_bytes(b"\x80\x04.")
    with pytest.raises(SafetyError, match="pickled"):
        BENCHMARKS["refcoco"].read(BenchmarkFiles(tmp_path, "val", "{phrase}"))
    (tmp_path / "coco_pope_random.json").write_text('{"image": "../x.jpg", "text": "?", "label": "no"}\n{\n')
    (tmp_path / "val2014").mkdir()
    with pytest.raises(LockadaptError):
        BENCHMARKS["pope"].read(BenchmarkFiles(tmp_path, "random", "{question}"))
    with pytest.raises(DataError, match="no such folder"):
        data_folder(str(tmp_path / "absent"))
    monkeypatch.setattr(module, "hub_is_reachable", lambda: False)
    with pytest.raises(DataError, match="cannot be reached"):
        data_folder("owner/name")
    monkeypatch.setattr(module, "hub_is_reachable", lambda: True)
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, repo_type: f"{files}/{repo_type}/{name}"
    )
    assert data_folder("owner/name") == files / "dataset" / "owner" / "name"


def test_a_run_is_scored_from_the_command_line(files: Path, tiny: Path, tmp_path: Path) -> None:
    recipe = values(tiny, tmp_path)
    recipe["training"]["steps"] = 20
    run = lockadapt.train(recipe, output=tmp_path / "run", quiet=True).output

    def asked(name: str, *options: str) -> Any:
        given = ("eval", run, "--benchmark", name, "--data", files / name, "--json", "-q", *options)
        return command.lockadapt(*given)

    rows = tmp_path / "rows.jsonl"
    done = asked("pope", "--predictions", str(rows), "--prompt", "{question}")
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)["pope"]
    assert (scores["split"], scores["n"]) == ("random", 4)
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["question"] for row in written] == ["Is there a cat in the image?"] * 4
    predictor = lockadapt.Predictor(run)
    images = [sample.images[0].path for sample in read(files, "pope")]
    answers = predictor.answers(images, ["Is there a cat in the image?"] * 4, max_new_tokens=16)  # type: ignore[arg-type]
    assert [row["answer"] for row in written] == answers
    assert not (run / "evaluation.json").exists()
    few = asked("mme", "--set", "evaluation.samples=6", "--blind")
    assert json.loads(few.stdout)["mme"]["n"] == 6
    for failed, reason in (
        (asked("nlvr"), "no benchmark"),
        (asked("pope", "--split", "x"), "no split"),
        (asked("flickr30k"), "embeddings"),
        (command.lockadapt("eval", run, "--split", "x"), "belongs to --benchmark"),
        (command.lockadapt("eval", run, "--benchmark", "pope"), "needs its files"),
    ):
        assert failed.returncode == 2
        assert re.search(reason, failed.stderr)


def test_retrieval_is_scored_by_the_runs_own_embeddings(files: Path, tiny: Path, tmp_path: Path) -> None:
    recipe = values(tiny, tmp_path)
    rows = {"format": "jsonl", "path": str(tmp_path / "captions.jsonl"), "images": str(tmp_path / "pictures")}
    lines = [{"image": path.name, "caption": name} for name, path in pictures(tmp_path / "pictures").items()]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe["objectives"] = {"itc": {"train": rows, "mode": "dual"}}
    recipe["training"] |= {"steps": 5}
    run = lockadapt.train(recipe, output=tmp_path / "run", quiet=True).output
    given = ("eval", run, "--benchmark", "flickr30k", "--data", files / "flickr30k", "--json", "-q")
    done = command.lockadapt(*given)
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)["flickr30k"]
    assert scores["n"] == 6
    assert scores["text_to_image"]["r10"] == scores["image_to_text"]["r10"] == 1.0
