"""Preferences about the quickstart's scenes: the right answer to a question, and a wrong one of its kind."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from lockadapt.errors import DiskError
from lockadapt.quickstart.scenes import write_lines


def make_preferences(folder: Path, seed: int = 0) -> None:
    """Write `preferences_train.jsonl` and `preferences_test.jsonl` beside what `make_dataset` wrote.

    A row is one of `train.jsonl` or `test.jsonl` with `chosen`, its answer, and `rejected`, another answer
    that questions of its kind have; where they all have one, it is left out. The same arguments give the same
    bytes.

    Args:
        folder: of the data set.
        seed: of the choice of wrong answers.

    Raises:
        DiskError: the files cannot be read or written.
    """
    try:
        for half in ("train", "test"):
            text = (folder / f"{half}.jsonl").read_text(encoding="utf-8")
            rows, random = [json.loads(line) for line in text.splitlines()], Random(f"{seed}-{half}")
            answers: dict[tuple[str, str], set[str]] = {}
            for row in rows:
                answers.setdefault(_kind(row), set()).add(row["answer"])
            pairs = []
            for row in rows:
                others = sorted(answers[_kind(row)] - {row["answer"]})
                if others:
                    pairs.append({**row, "chosen": row["answer"], "rejected": random.choice(others)})
            write_lines(folder / f"preferences_{half}.jsonl", pairs)
    except OSError as error:
        raise DiskError(
            f"the preferences cannot be written: {error.strerror or error}",
            where=str(error.filename or folder),
            fix="choose the folder of the data set, which can be written",
        ) from error


def _kind(row: dict[str, str]) -> tuple[str, str]:
    """Questions about colours and shapes have other answers."""
    return row["answer_type"], row["question"].split()[0]
