"""Questions about scenes that a short supervised run answers badly, each with a wrong answer."""

from __future__ import annotations

from pathlib import Path
from random import Random

from lockadapt.errors import DiskError
from lockadapt.quickstart.drawing import Scene, draw
from lockadapt.quickstart.grammar import Pair, Question, questions
from lockadapt.quickstart.scenes import HELD_OUT, SEEN, random_scene, write_lines

EVALUATION = 3
"""Test scenes are drawn in so many parts, of which the first is for validation."""


def make_hard(folder: Path, seed: int = 0, train: int = 3000, test: int = 900) -> None:
    """Draw scenes and write their hard questions, of relations and yes/no, each with a wrong answer.

    Writes `hard/train/*.png`, `hard/test/*.png` (RGB, 96 x 96), and `hard_train.jsonl`,
    `hard_validation.jsonl` and `hard_test.jsonl` (image, question, answer, answer_type, chosen, rejected).
    Train scenes hold pairs of SEEN only, the others those of HELD_OUT only. The same arguments give the same
    bytes.

    Args:
        folder: where to write; that of `make_dataset` may be the same.
        seed: of all random choices.
        train: scenes to train on.
        test: scenes for validation and test.

    Raises:
        DiskError: the folder cannot be written.
    """
    try:
        rows = _rows(folder, "train", Random(f"{seed}-hard-train"), train, SEEN)
        write_lines(folder / "hard_train.jsonl", rows)
        rows = _rows(folder, "test", Random(f"{seed}-hard-test"), test, HELD_OUT)
        cut = len(rows) // EVALUATION
        write_lines(folder / "hard_validation.jsonl", rows[:cut])
        write_lines(folder / "hard_test.jsonl", rows[cut:])
    except OSError as error:
        raise DiskError(
            f"the scenes cannot be written: {error.strerror or error}",
            where=str(error.filename or folder),
            fix="choose a folder that can be written and has 60 MB of space",
        ) from error


def _rows(
    folder: Path, name: str, random: Random, count: int, pairs: frozenset[Pair]
) -> list[dict[str, object]]:
    """One question a scene: relations, yes and no in turn."""
    (folder / "hard" / name).mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for number in range(count):
        scene, question, wrong = _asked(random, pairs, ("relation", "yes", "relation", "no")[number % 4])
        image = f"hard/{name}/{number:05d}.png"
        draw(scene).save(folder / image, compress_level=1)
        row = {"image": image, "question": question.text, "answer": question.answer}
        rows.append({**row, "answer_type": question.kind, "chosen": question.answer, "rejected": wrong})
    return rows


def _asked(random: Random, pairs: frozenset[Pair], wanted: str) -> tuple[Scene, Question, str]:
    """A scene, a question of a kind about it, and what would be right of another thing in it."""
    while True:
        scene = random_scene(random, pairs)
        asked = [item for item in questions(scene, pairs, random) if wanted in (item.kind, item.answer)]
        if not asked:
            continue
        question = random.choice(asked)
        if question.kind == "yes/no":
            return scene, question, "no" if question.answer == "yes" else "yes"
        alike = {item.answer for item in asked if item.text.split()[:2] == question.text.split()[:2]}
        others = sorted(alike - {question.answer})
        if others:
            return scene, question, random.choice(others)
