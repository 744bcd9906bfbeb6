"""Data of the recipes quickstart-dpo and quickstart-grpo: right and wrong answers, unseen pairs held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lockadapt.quickstart.hard import make_hard
from lockadapt.quickstart.preferences import make_preferences
from lockadapt.quickstart.scenes import make_dataset


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_preferences_are_of_the_same_rows(tmp_path: Path) -> None:
    make_dataset(tmp_path, train=120, test=30)
    make_preferences(tmp_path)
    rows, pairs = lines(tmp_path / "train.jsonl"), lines(tmp_path / "preferences_train.jsonl")
    own = [{key: pair[key] for key in rows[0]} for pair in pairs]
    assert own == [row for row in rows if row in own]
    assert len(pairs) > 0.9 * len(rows)
    assert all(pair["chosen"] == pair["answer"] for pair in pairs)
    assert all(pair["rejected"] != pair["chosen"] for pair in pairs)
    assert {p["rejected"] for p in pairs if p["answer_type"] == "colour"} <= {
        p["chosen"] for p in pairs if p["answer_type"] == "colour"
    }
    assert lines(tmp_path / "preferences_test.jsonl")
    before = (tmp_path / "preferences_train.jsonl").read_bytes()
    make_preferences(tmp_path)
    assert (tmp_path / "preferences_train.jsonl").read_bytes() == before


def test_hard_questions_are_relations_and_yes_or_no(tmp_path: Path) -> None:
    make_hard(tmp_path, train=16, test=12)
    rows = lines(tmp_path / "hard_train.jsonl")
    assert [row["answer_type"] for row in rows[:4]] == ["relation", "yes/no", "relation", "yes/no"]
    assert sorted(row["answer"] for row in rows if row["answer_type"] == "yes/no") == ["no"] * 4 + ["yes"] * 4
    assert all(row["chosen"] == row["answer"] != row["rejected"] for row in rows)
    assert len(lines(tmp_path / "hard_validation.jsonl")) == 4
    assert len(lines(tmp_path / "hard_test.jsonl")) == 8
    assert all((tmp_path / row["image"]).is_file() for row in rows)
