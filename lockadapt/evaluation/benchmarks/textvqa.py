"""TextVQA (arXiv 1904.08920): questions about the text in OpenImages photographs, ten human answers each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lockadapt.data.readers.files import read_json
from lockadapt.data.readers.rows import main_answer
from lockadapt.data.readers.tables import table
from lockadapt.data.sample import Sample
from lockadapt.errors import DataError
from lockadapt.evaluation.benchmarks.base import SHORT_ANSWER, Asked, Benchmark, BenchmarkFiles, questions
from lockadapt.metrics.vqa import normalize_answer


def read(files: BenchmarkFiles) -> list[Sample]:
    """Read `TextVQA_0.5.1_SPLIT.json` and `train_images/`; several problems in one `DataError`."""
    path = files.path(f"TextVQA_0.5.1_{files.split}.json")
    rows = table(read_json(path), "data", path)

    def ask(row: dict[str, Any], where: str) -> Asked:
        given = row.get("answers")
        people = tuple(a for a in given if isinstance(a, str)) if isinstance(given, list) else ()
        if not people:
            raise DataError("the question has no answers", where=where, fix="choose a split with answers")
        question = row.get("question")
        # The official files write questions in lower case; lmms-eval shows them as sentences.
        question = question.capitalize() if isinstance(question, str) else question
        image = f"{row.get('image_id')}.jpg"
        return Asked(image, question, main_answer(people), None, people, row.get("question_id"))

    placed = ((f"{path.name}[{number}]", row) for number, row in enumerate(rows))
    return questions(files, path, placed, files.pictures("train_images"), ask)


def score(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, Any]:
    """Mean over people of min(others who gave this answer / 3, 1); all answers are normalised first.

    Args:
        samples: the questions, with all people's answers as references.
        answers: one each.

    Returns:
        `{"accuracy", "n"}`, accuracy in 0..1.

    Source: `TextVQAAccuracyEvaluator` and `EvalAIAnswerProcessor` of facebookresearch/mmf.
    """
    total = 0.0
    for sample, answer in zip(samples, answers, strict=True):
        own, people = _normalized(answer), [_normalized(text) for text in sample.references]
        same = people.count(own)
        total += sum(min(1.0, (same - (given == own)) / 3) for given in people) / len(people)
    return {"accuracy": total / len(samples), "n": len(samples)}


def _normalized(text: str) -> str:
    words = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalize_answer(words.replace("\n", " ").replace("\t", " ").strip())


BENCHMARK = Benchmark("vqa", ("val", "train"), SHORT_ANSWER, read, score)
