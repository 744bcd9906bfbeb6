"""BLEU equals the official scorer's, and what paper and pencil give."""

from __future__ import annotations

import math

import pytest

from lockadapt.errors import DataError
from lockadapt.metrics.bleu import corpus_bleu
from tests.support.coco import CocoOracle


def words(*texts: str) -> list[list[str]]:
    return [text.split() for text in texts]


@pytest.mark.real
def test_oracle(coco: CocoOracle) -> None:
    assert corpus_bleu(coco.candidates, coco.references) == pytest.approx(coco.scores["BLEU"], abs=1e-12)


def test_counts_are_clipped_by_the_reference_that_has_most() -> None:
    # Papineni et al.'s example: "the" occurs twice in one reference, so 2 of 7 count.
    references = words("the cat is on the mat", "there is a cat on the mat")
    assert corpus_bleu(words("the the the the the the the"), [references])[0] == pytest.approx(2 / 7)


def test_short_captions_are_penalised() -> None:
    scores = corpus_bleu(words("a b"), [words("a b c d")])
    # exp(1 - 4/2); and without any trigram the guards 1e-15 / 1e-9 stand for its precision.
    assert scores[:2] == pytest.approx([math.exp(-1)] * 2)
    assert scores[2] == pytest.approx(1e-2 * math.exp(-1))


def test_of_two_equally_close_lengths_the_shorter_counts() -> None:
    assert corpus_bleu(words("a b c"), [words("a b", "a b c d")])[0] == pytest.approx(1.0)
    assert corpus_bleu(words("a b c"), [words("a b c d")])[0] == pytest.approx(math.exp(1 - 4 / 3))


def test_counts_are_summed_over_the_set_before_dividing() -> None:
    # 1 of 1 and 0 of 3 words: 1/4, not the mean 1/2; no penalty, lengths agree.
    candidates, references = words("a", "x y z"), [words("a"), words("p q r")]
    assert corpus_bleu(candidates, references)[0] == pytest.approx(1 / 4)


def test_an_empty_caption_scores_nothing() -> None:
    assert corpus_bleu([[]], [words("a b")]) == pytest.approx([0.0] * 4)


def test_as_many_scores_as_orders() -> None:
    assert len(corpus_bleu(words("a"), [words("a")], order=2)) == 2


def test_lengths_must_agree() -> None:
    with pytest.raises(DataError, match="2 predictions for 1 lists"):
        corpus_bleu(words("a", "b"), [words("a")])
