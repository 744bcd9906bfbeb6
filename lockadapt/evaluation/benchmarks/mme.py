"""MME (arXiv 2306.13394): two yes/no questions about each image, in fourteen subtasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lockadapt.data.paths import DataRoot
from lockadapt.data.readers.files import read_text
from lockadapt.data.readers.pictures import Pictures
from lockadapt.data.sample import Sample
from lockadapt.errors import DataError
from lockadapt.evaluation.benchmarks.base import Asked, Benchmark, BenchmarkFiles, questions

PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SUFFIXES = (".jpg", ".png")


def read(files: BenchmarkFiles) -> list[Sample]:
    """Read all subtasks: each image has a text of two lines `question TAB answer`, beside it or apart.

    Args:
        files: of the benchmark.

    Returns:
        Two samples an image, whose `sample_id` they share and whose answer type is the subtask.

    Raises:
        DataError: no subtask, a text without its image, or not of two lines.
    """
    folder = files.path("MME_Benchmark_release_version", ".")

    def ask(row: dict[str, Any], where: str) -> Asked:
        return Asked(row["image"], row["question"], row["answer"], row["subtask"], (), row["id"])

    return questions(files, folder, _rows(folder), Pictures(DataRoot(folder)), ask)


def _rows(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for subtask in (*PERCEPTION, *COGNITION):
        texts = folder / subtask / "questions_answers_YN"
        apart = texts.is_dir()
        for text in sorted((texts if apart else folder / subtask).glob("*.txt")):
            where = f"{subtask}/{text.name}"
            stem = f"{subtask}/{'images/' if apart else ''}{text.stem}"
            image = next((stem + end for end in SUFFIXES if (folder / (stem + end)).is_file()), None)
            pairs = [line.split("\t") for line in read_text(text).splitlines() if line.strip()]
            if image is None or len(pairs) != 2 or any(len(pair) != 2 for pair in pairs):
                raise DataError(
                    "the text has no image beside it, or not two lines of a question and an answer",
                    where=where,
                    fix="fetch the benchmark again",
                )
            for question, answer in pairs:
                row = {"image": image, "question": question, "answer": answer, "subtask": subtask}
                yield where, {**row, "id": f"{subtask}/{text.stem}"}


def score(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, Any]:
    """Sum over subtasks of accuracy and accuracy+ (both questions of an image right), each of 100.

    Args:
        samples: the questions.
        answers: one each.

    Returns:
        `{"perception", "cognition", "by_subtask", "n"}`: of at most 2,000, 800 and 200.

    Source: MME's `calculation.py`; an answer counts by "yes" or "no" in its first four letters.
    """
    images: dict[tuple[str, str | None], list[bool]] = {}
    for sample, answer in zip(samples, answers, strict=True):
        right = _label(answer) == sample.answer.strip().lower()
        images.setdefault((str(sample.answer_type), sample.sample_id), []).append(right)
    by_subtask: dict[str, float] = {}
    for subtask in (*PERCEPTION, *COGNITION):
        own = [right for (name, _), right in images.items() if name == subtask]
        if own:
            accuracy = sum(map(sum, own)) / sum(map(len, own))
            by_subtask[subtask] = 100 * (accuracy + sum(map(all, own)) / len(own))
    return {
        "perception": sum(by_subtask.get(name, 0.0) for name in PERCEPTION),
        "cognition": sum(by_subtask.get(name, 0.0) for name in COGNITION),
        "by_subtask": by_subtask,
        "n": len(samples),
    }


def _label(answer: str) -> str:
    start = answer.strip().lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


# The questions themselves end with "Please answer yes or no."
BENCHMARK = Benchmark("vqa", ("all",), "{question}", read, score)
