"""Caption scores from plain text."""

from __future__ import annotations

import pytest

from lockadapt.errors import DataError
from lockadapt.metrics.captions import score_captions
from tests.support.coco import CocoOracle

# Scored by pycocoevalcap 1.2 with its Java tokenizer.
CANDIDATES = ["A cat's on the mat.", "Two dogs (brown) play!", "", "a bus at 5 p.m."]
REFERENCES = [
    ["The cat is on a mat.", "A cat sits on the mat"],
    ["Two brown dogs are playing.", "two dogs play in the park", "Dogs."],
    ["A man rides a bike."],
    ["A red bus at 5 p.m. on Main St.", "a bus at 5 p.m."],
]
CIDER, BLEU4, ROUGE_L = 2.790347543442982, 0.33890534936563693, 0.6356589147286822


@pytest.mark.real
def test_oracle(coco: CocoOracle) -> None:
    assert score_captions(coco.texts, coco.reference_texts) == {
        "cider": pytest.approx(coco.scores["CIDEr"], abs=1e-9),
        "bleu4": pytest.approx(coco.scores["BLEU"][3], abs=1e-9),
        "rouge_l": pytest.approx(coco.scores["ROUGE_L"], abs=1e-9),
        "n": 1000,
        "tokenizer": "ptb-py",
    }


def test_same_as_the_official_scorer() -> None:
    assert score_captions(CANDIDATES, REFERENCES) == {
        "cider": pytest.approx(CIDER, abs=1e-9),
        "bleu4": pytest.approx(BLEU4, abs=1e-9),
        "rouge_l": pytest.approx(ROUGE_L, abs=1e-9),
        "n": 4,
        "tokenizer": "ptb-py",
    }


def test_order_of_items_does_not_matter() -> None:
    forward, backward = (
        score_captions(CANDIDATES, REFERENCES),
        score_captions(CANDIDATES[::-1], REFERENCES[::-1]),
    )
    assert forward == pytest.approx(backward)


def test_case_and_punctuation_do_not_count() -> None:
    scores = score_captions(["A DOG, running!"], [["a dog running"]])
    assert scores["rouge_l"] == pytest.approx(1.0)


def test_one_image_has_no_cider_but_the_others() -> None:
    scores = score_captions(["a cat on the mat"], [["a cat on the mat"]])
    assert scores["cider"] == 0.0
    assert scores["bleu4"] == pytest.approx(1.0)
    assert scores["rouge_l"] == pytest.approx(1.0)


def test_an_empty_caption_is_scored_as_wrong() -> None:
    scores = score_captions([""], [["a cat"]])
    assert (scores["cider"], scores["rouge_l"]) == (0.0, 0.0)
    assert scores["bleu4"] == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        ([], [], "nothing to score"),
        (["a"], [["a"], ["b"]], "1 predictions for 2 lists"),
        (["a"], [[]], "no reference"),
        (["a"], ["a cat"], "one string"),
    ],
)
def test_bad_input(candidates: list[str], references: list[list[str]], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        score_captions(candidates, references)
    assert caught.value.where
    assert caught.value.fix
