"""ROUGE-L equals the official scorer's, and what paper and pencil give."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockadapt.errors import DataError
from lockadapt.metrics.rouge import rouge_l
from tests.support.coco import CocoOracle

TOKENS = st.lists(st.sampled_from("abc"), min_size=1, max_size=6)


def score(candidate: str, *references: str) -> float:
    return rouge_l([candidate.split()], [[reference.split() for reference in references]])[0]


@pytest.mark.real
def test_oracle(coco: CocoOracle) -> None:
    items = rouge_l(coco.candidates, coco.references)
    assert items[:20] == pytest.approx(coco.first_items["ROUGE_L"], abs=1e-12)
    assert sum(items) / len(items) == pytest.approx(coco.scores["ROUGE_L"], abs=1e-12)


def test_by_hand() -> None:
    # Common subsequence a c d: precision 3/4, recall 3/5; 2.44 · 0.45 / (0.6 + 1.44 · 0.75).
    assert score("a b c d", "a c d e f") == pytest.approx(1.098 / 1.68)


def test_order_matters() -> None:
    # Only one of the two words can be in a common subsequence: precision and recall are 1/2.
    assert score("b a", "a b") == pytest.approx(0.5)


def test_best_precision_and_best_recall_may_come_from_different_references() -> None:
    assert score("a b", "a", "a b c d") == pytest.approx(1.0)


@pytest.mark.parametrize(("candidate", "reference"), [("x", "y"), ("", "a b"), ("a b", "")])
def test_nothing_in_common(candidate: str, reference: str) -> None:
    assert score(candidate, reference) == 0.0


def test_nothing_against_nothing_matches_as_in_the_official_code() -> None:
    assert score("", "") == 1.0


@given(TOKENS, TOKENS)
def test_bounds(candidate: list[str], reference: list[str]) -> None:
    value = rouge_l([candidate], [[reference]])[0]
    assert 0.0 <= value <= 1.0 + 1e-12
    assert (value == pytest.approx(1.0)) == (candidate == reference)


def test_an_item_needs_a_reference() -> None:
    with pytest.raises(DataError, match="no reference") as caught:
        rouge_l([["a"], ["b"]], [[["a"]], []])
    assert "row 1" in str(caught.value)
