"""POPE (arXiv 2305.10355): whether things are in COCO photographs, half of which are not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lockadapt.data.readers.files import text_lines
from lockadapt.data.sample import Sample
from lockadapt.errors import DataError
from lockadapt.evaluation.benchmarks.base import SHORT_ANSWER, Asked, Benchmark, BenchmarkFiles, questions


def read(files: BenchmarkFiles) -> list[Sample]:
    """Read `coco_pope_SPLIT.json`, which holds JSON lines, and `val2014/`; problems in one `DataError`."""
    name = f"coco_pope_{files.split}.json"
    path = files.path(name, f"coco/{name}", f"output/coco/{name}")

    def ask(row: dict[str, Any], where: str) -> Asked:
        return Asked(row.get("image"), row.get("text"), row.get("label"), None, (), row.get("question_id"))

    return questions(files, path, _lines(path), files.pictures("val2014", "images/val2014"), ask)


def score(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, Any]:
    """Score yes as the positive class.

    Args:
        samples: the questions.
        answers: one each.

    Returns:
        `{"accuracy", "precision", "recall", "f1", "yes_ratio", "n"}`, each in 0..1; 0 where undefined.

    Source: RUCAIBox/POPE `evaluate.py`: an answer is no where its first sentence holds the word No, no or
    not, else yes.
    """
    claims = [_says_yes(answer) for answer in answers]
    true = [sample.answer.strip().lower() == "yes" for sample in samples]
    both = sum(a and b for a, b in zip(claims, true, strict=True))
    precision, recall = _share(both, sum(claims)), _share(both, sum(true))
    return {
        "accuracy": sum(a == b for a, b in zip(claims, true, strict=True)) / len(claims),
        "precision": precision,
        "recall": recall,
        "f1": _share(2 * precision * recall, precision + recall),
        "yes_ratio": sum(claims) / len(claims),
        "n": len(claims),
    }


def _says_yes(answer: str) -> bool:
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in text_lines(path):
        if isinstance(line, DataError):
            raise line
        try:
            yield f"{path.name}:{number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                "the line is no JSON", where=f"{path.name}:{number}", fix="fetch the file again"
            ) from error


BENCHMARK = Benchmark("vqa", ("random", "popular", "adversarial"), SHORT_ANSWER, read, score)
