"""MMStar (arXiv 2403.20330): 1,500 multiple-choice questions that cannot be answered without the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lockadapt.data.readers import hub
from lockadapt.data.readers.source import Source
from lockadapt.data.sample import Sample
from lockadapt.evaluation.benchmarks.base import Benchmark, BenchmarkFiles

COLUMNS = {
    "question": "question",
    "answer": "answer",
    "image": "image",
    "answer_type": "category",
    "id": "index",
}


def read(files: BenchmarkFiles) -> list[Sample]:
    """Read the parquet file, which holds the images; errors as the reader of `datasets`."""
    path = files.path("*.parquet", "data/*.parquet")
    return list(hub.read(Source(path, "vqa", columns=COLUMNS, prompt=files.prompt)))


def score(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, Any]:
    """Accuracy of the chosen letter by category; the average weighs the six categories alike.

    Args:
        samples: the questions, with their categories as answer types.
        answers: one each.

    Returns:
        `{"average", "by_category", "n"}`, each in 0..1.

    Source: `MMStar_eval` of MMStar-Benchmark/MMStar, where every category has 250 questions.
    """
    groups: dict[str, list[bool]] = {}
    for sample, answer in zip(samples, answers, strict=True):
        groups.setdefault(str(sample.answer_type), []).append(_chooses(answer, sample.answer))
    shares = {name: sum(right) / len(right) for name, right in sorted(groups.items())}
    return {"average": sum(shares.values()) / len(shares), "by_category": shares, "n": len(samples)}


def _chooses(answer: str, letter: str) -> bool:
    """Whether an answer begins with the letter, alone, in a bracket, or behind the two usual phrases."""
    text, right = answer.lower().strip().replace("\n", " "), letter.lower().strip()
    beginnings = ("", "(", "option ", "the answer is ")
    return any(text.startswith(start) and text[len(start) :][:1] == right for start in beginnings)


PROMPT = "{question}\nAnswer with the option's letter from the given choices directly."
BENCHMARK = Benchmark("vqa", ("val",), PROMPT, read, score)
