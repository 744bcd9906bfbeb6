"""Answer scores equal the official VQA code's, oddities included; exact match elsewhere."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockadapt.errors import DataError
from lockadapt.metrics.vqa import exact_match, normalize_answer, score_answers, vqa_accuracy


def accuracy(answer: str, people: list[str]) -> float:
    return vqa_accuracy([answer], [people])[0]


@pytest.mark.real
def test_the_four_published_scores(real: Path) -> None:
    folder = real / "oracles/vqa-v2"
    with gzip.open(folder / "annotations_test.json.gz", "rt", encoding="utf-8") as file:
        rows = json.load(file)["annotations"]
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))["scores"]
    people = [[person["answer"] for person in row["answers"]] for row in rows]
    answers = {
        "always 'yes'": ["yes"] * len(rows),
        "first annotator's answer": [annotations[0] for annotations in people],
        "multiple_choice_answer": [row["multiple_choice_answer"] for row in rows],
        "'The ' + multiple_choice_answer.upper() + '.'": [
            f"The {row['multiple_choice_answer'].upper()}." for row in rows
        ],
    }
    got = {}
    for name, answer in answers.items():
        scores = vqa_accuracy(answer, people)
        got[name] = round(100 * sum(scores) / len(scores), 2)
    assert len(rows) == 2962
    assert got == expected
    types = [row["answer_type"] for row in rows]
    scored = score_answers(answers["multiple_choice_answer"], people, types)
    assert round(100 * scored["accuracy"], 2) == expected["multiple_choice_answer"]
    assert list(scored["by_answer_type"]) == ["number", "other", "yes/no"]


@pytest.mark.parametrize(("same", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)])
def test_mean_over_leaving_one_person_out(same: int, score: float) -> None:
    # With 3 of 10: leaving out one of the three gives 2/3, any of the seven others 1: (3 · 2/3 + 7) / 10.
    people = ["cat"] * same + [f"other{i}" for i in range(10 - same)]
    assert accuracy("cat", people) == pytest.approx(score)


def test_nothing_is_normalised_where_all_agree() -> None:
    assert accuracy("yes", ["yes"] * 10) == 1.0
    assert accuracy(" yes\n", ["yes"] * 10) == 1.0
    assert accuracy("Yes", ["yes"] * 10) == 0.0
    assert accuracy("Yes.", ["yes"] * 9 + ["no"]) == 1.0


def test_both_sides_are_normalised_where_people_differ() -> None:
    assert accuracy("2", ["two"] * 5 + ["Two."] * 5) == 1.0


def test_an_empty_answer_is_wrong() -> None:
    assert accuracy("", ["yes"] * 9 + ["no"]) == 0.0


# Right-hand sides were written by the official code's two functions.
OFFICIAL = [
    ("The Cat.", "cat"),
    ("two dogs", "2 dogs"),
    ("None", "0"),
    ("dont", "don't"),
    ("couldnt've", "couldn't've"),
    ("ow's'at", "'ow's'at"),
    ("somebody'd", "somebodyd"),
    ("I'm", "i'm"),
    ("im", "im"),
    ("1,000", "1000"),
    ("1,000 a/b", "1000 ab"),
    ("black-white", "black white"),
    ("black -white", "black white"),
    ("x-y -z", "xy z"),
    ("t-shirt, blue", "t shirt blue"),
    ("3.5", "3.5"),
    ("5.", "5"),
    (".5", ".5"),
    ("e.g. this", "eg this"),
    ("what?!", "what"),
    ("a an the", ""),
    ("it's 5:30 & $4", "it's 5:30 & $4"),
    ("Café №5", "café №5"),
    ("." * 33, "."),
    ("", ""),
]


@pytest.mark.parametrize(("text", "expected"), OFFICIAL)
def test_normalisation_is_the_official_one(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("Yes", ["yes"], 1.0),
        (" a  red\tball. ", ["A red ball"], 1.0),
        ("a red ball", ["blue", "A RED BALL!"], 1.0),
        ("the ball", ["ball"], 0.0),
        ("two", ["2"], 0.0),
        ("STRASSE", ["straße"], 1.0),
        ("cafe\u0301", ["café"], 1.0),
        ("日本。", ["日本。"], 1.0),
        ("?", ["!"], 0.0),
        ("", ["yes"], 0.0),
        ("", [""], 1.0),
    ],
)
def test_exact_match(answer: str, references: list[str], score: float) -> None:
    assert exact_match(answer, references) == score


@given(st.text(max_size=30))
def test_an_answer_matches_itself(answer: str) -> None:
    assert exact_match(answer, [answer]) == 1.0
    assert exact_match(f"  {answer} ", [answer.upper(), answer]) == 1.0


def test_score_answers_picks_the_measure_by_question() -> None:
    ten = ["cat"] * 3 + ["dog"] * 7
    scored = score_answers(["cat", "CAT", "no"], [ten, ["cat"], ["yes"]], ["other", None, "yes/no"])
    assert scored == {
        "accuracy": pytest.approx((0.9 + 1.0 + 0.0) / 3),
        "by_answer_type": {"other": pytest.approx(0.9), "yes/no": 0.0},
        "n": 3,
    }


def test_nine_references_are_matched_exactly_ten_officially() -> None:
    assert score_answers(["a cat"], [["cat"] * 8 + ["a cat"]], [None])["accuracy"] == 1.0
    assert score_answers(["a cat"], [["cat"] * 9 + ["a cat"]], [None])["accuracy"] == 1.0
    assert score_answers(["a cat"], [["cat"] * 10], [None])["accuracy"] == 0.0


def test_bad_input() -> None:
    with pytest.raises(DataError, match="nothing to score"):
        score_answers([], [], [])
    with pytest.raises(DataError, match="2 predictions for 1 lists"):
        vqa_accuracy(["a", "b"], [["a"] * 10])
    with pytest.raises(DataError, match="1 answers, but 2 answer types"):
        score_answers(["a"], [["a"]], [None, None])
    with pytest.raises(DataError, match="needs 10 people's answers, there are 3") as caught:
        vqa_accuracy(["a", "a"], [["a"] * 10, ["a"] * 3])
    assert "row 1" in str(caught.value)
    assert "exact_match" in str(caught.value)
    with pytest.raises(DataError, match="no reference"):
        exact_match("a", [])
    with pytest.raises(DataError, match="one string"):
        exact_match("a", "abc")
