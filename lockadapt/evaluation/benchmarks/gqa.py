"""GQA (arXiv 1902.09506): compositional questions about scenes, each with one answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lockadapt.data.readers.files import read_json
from lockadapt.data.sample import Sample
from lockadapt.errors import DataError
from lockadapt.evaluation.benchmarks.base import SHORT_ANSWER, Asked, Benchmark, BenchmarkFiles, questions


def read(files: BenchmarkFiles) -> list[Sample]:
    """Read `SPLIT_balanced_questions.json` and `images/`; several problems in one `DataError`."""
    name = f"{files.split}_balanced_questions.json"
    path = files.path(name, f"questions1.2/{name}")
    rows = read_json(path)
    if not isinstance(rows, dict):
        raise DataError("the file is no object of questions by id", where=str(path), fix="fetch it again")

    def ask(row: dict[str, Any], where: str) -> Asked:
        types = row.get("types")
        structural = types.get("structural") if isinstance(types, dict) else None
        kind = None if structural is None else "open" if structural == "query" else "binary"
        return Asked(f"{row.get('imageId')}.jpg", row.get("question"), row.get("answer"), kind, (), where)

    return questions(files, path, rows.items(), files.pictures("images"), ask)


def score(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, Any]:
    """Accuracy by exact match, also of binary and of open questions.

    Args:
        samples: the questions.
        answers: one each.

    Returns:
        `{"accuracy", "binary", "open", "n"}`, each in 0..1.

    Source: GQA's `eval.py`, which compares strings; before, answers are lower-cased and lose a final full
    stop, as by LLaVA's `convert_gqa_for_eval.py`.
    """
    right = [
        answer.strip().rstrip(".").lower() == sample.answer
        for sample, answer in zip(samples, answers, strict=True)
    ]
    scores: dict[str, Any] = {"accuracy": sum(right) / len(right)}
    for kind in ("binary", "open"):
        own = [
            is_right for sample, is_right in zip(samples, right, strict=True) if sample.answer_type == kind
        ]
        if own:
            scores[kind] = sum(own) / len(own)
    return {**scores, "n": len(right)}


BENCHMARK = Benchmark("vqa", ("testdev", "val"), SHORT_ANSWER, read, score)
