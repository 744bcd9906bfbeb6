"""CIDEr-D equals the official scorer's, and what paper and pencil give."""

from __future__ import annotations

import math

import pytest

from lockadapt.errors import DataError
from lockadapt.metrics.cider import cider_d
from tests.support.coco import CocoOracle


def scores(*items: tuple[str, list[str]]) -> list[float]:
    return cider_d(
        [own.split() for own, _ in items], [[reference.split() for reference in them] for _, them in items]
    )


OTHER = ("z", ["y x"])


@pytest.mark.real
def test_oracle(coco: CocoOracle) -> None:
    items = cider_d(coco.candidates, coco.references)
    assert items[:20] == pytest.approx(coco.first_items["CIDEr"], abs=1e-12)
    assert sum(items) / len(items) == pytest.approx(coco.scores["CIDEr"], abs=1e-12)


def test_equal_captions() -> None:
    # Cosine 1 for one and two words, none for three and four: 10 · (1 + 1 + 0 + 0) / 4.
    assert scores(("a b", ["a b"]), OTHER) == pytest.approx([5.0, 0.0])
    assert scores(("a b c d", ["a b c d"]), OTHER)[0] == pytest.approx(10.0)


def test_length_is_penalised() -> None:
    # One word: 2 / (√2 √5); two: 1 / (1 · √4); two words against five: exp(−3² / (2 · 6²)).
    expected = 10 / 4 * (2 / math.sqrt(10) + 1 / 2) * math.exp(-9 / 72)
    assert scores(("a b", ["a b c d e"]), OTHER)[0] == pytest.approx(expected)


def test_repeated_words_are_clipped() -> None:
    # min(2, 1) · 1 / (2 · 1) for words; the pair "a a" is unknown to the reference.
    assert scores(("a a", ["a"]), OTHER)[0] == pytest.approx(10 / 4 * 0.5 * math.exp(-1 / 72))


def test_mean_over_references() -> None:
    assert scores(("a b", ["a b", "c d"]), OTHER)[0] == pytest.approx(2.5)


def test_words_that_all_items_hold_weigh_nothing() -> None:
    # "the" stands in both items, so only "cat" counts: word cosine 1, bigram cosine 1.
    rare, common = scores(("the cat", ["the cat"]), ("the", ["the dog"]))
    assert rare == pytest.approx(5.0)
    assert common == 0.0


def test_a_set_of_one_item_scores_zero() -> None:
    assert scores(("a b c d", ["a b c d"])) == [0.0]


def test_empty_caption_and_empty_reference() -> None:
    assert scores(("", ["a b"]), OTHER)[0] == 0.0
    assert scores(("a b", [""]), OTHER)[0] == 0.0


def test_nothing_to_score() -> None:
    with pytest.raises(DataError, match="nothing to score"):
        cider_d([], [])
