"""Boxes are scored as pycocotools 2.0.11 scores them, whose numbers for these boxes stand here."""

from __future__ import annotations

import random

import pytest

from lockadapt.errors import DataError
from lockadapt.metrics.boxes import Box, iou, match, overlaps, score_boxes

TRUE: list[list[Box]] = [
    [(9, 25, 60, 38), (4, 52, 48, 68), (23, 37, 36, 79)],
    [(14, 2, 59, 20)],
    [(23, 6, 68, 61), (4, 36, 17, 85)],
    [(33, 31, 64, 87), (28, 18, 76, 32), (7, 32, 43, 52)],
    [(44, 42, 58, 55), (46, 44, 75, 95), (36, 43, 74, 71), (45, 24, 97, 56)],
    [(35, 17, 53, 54), (55, 35, 82, 90), (26, 22, 79, 56), (14, 9, 29, 30)],
]
PREDICTED: list[list[Box]] = [
    [(3, 24, 59, 32), (5, 51, 41, 74), (19, 40, 39, 81)],
    [(35, 52, 88, 73), (9, 3, 53, 22)],
    [(6, 43, 17, 83), (15, 50, 36, 104), (26, 7, 67, 66)],
    [(14, 38, 41, 50), (31, 12, 81, 33), (38, 31, 85, 70), (28, 38, 64, 86)],
    [(32, 42, 73, 78), (39, 40, 80, 92), (44, 40, 53, 57)],
    [(38, 13, 46, 54), (50, 32, 79, 83), (27, 20, 81, 58), (9, 13, 35, 31)],
]
COCO_IOUS = [
    [[0.459921, 0.0, 0.0], [0.0, 0.60251, 0.27814], [0.0, 0.265781, 0.590221]],
    [[0.0], [0.674466]],
]
"""`pycocotools.mask.iou` of the first two images: predicted by true."""
COCO_MATCHES = [[0, 2, 3], [0, 4], [6, 0, 5], [0, 8, 0, 7], [12, 11, 10], [0, 15, 16, 0]]
"""`dtMatches` of `COCOeval` at 0.5, all scores equal: ids of true boxes, counted from 1; 0 for none."""
COCO_PRECISION, COCO_RECALL = 0.631578947368421, 0.7058823529411765


def test_iou_is_pycocotools() -> None:
    for predicted, true, expected in zip(PREDICTED, TRUE, COCO_IOUS, strict=False):
        actual = [[iou(box, target) for target in true] for box in predicted]
        for row, wanted in zip(actual, expected, strict=True):
            assert row == pytest.approx(wanted, abs=1e-6)


def test_matches_are_pycocotools() -> None:
    first = 1
    for predicted, true, expected in zip(PREDICTED, TRUE, COCO_MATCHES, strict=True):
        actual = [0 if index is None else first + index for index in match(predicted, true)]
        assert actual == expected
        first += len(true)


def test_precision_and_recall_are_pycocotools() -> None:
    scores = score_boxes(PREDICTED, TRUE)
    assert scores["precision50"] == pytest.approx(COCO_PRECISION)
    assert scores["recall50"] == pytest.approx(COCO_RECALL)
    assert (scores["n"], scores["unparsed"]) == (6, 0)


def test_a_single_true_box_is_scored_by_the_first_that_is_named() -> None:
    true: list[list[Box]] = [[(0, 0, 10, 10)]] * 3
    named: list[list[Box]] = [[(0, 0, 10, 10), (90, 90, 99, 99)], [(90, 90, 99, 99), (0, 0, 10, 10)], []]
    assert score_boxes(named, true) == {
        "iou50": pytest.approx(1 / 3),
        "mean_iou": pytest.approx(1 / 3),
        "n": 3,
        "unparsed": 1,
    }


def test_half_covered_counts() -> None:
    assert score_boxes([[(0, 0, 10, 5)]], [[(0, 0, 10, 10)]])["iou50"] == 1
    assert score_boxes([[(0, 0, 10, 4.9)]], [[(0, 0, 10, 10)]])["iou50"] == 0


def test_several_boxes_are_paired_one_to_one() -> None:
    near, far = (0.0, 0.0, 10.0, 10.0), (50.0, 50.0, 60.0, 60.0)
    assert overlaps([far, near], [near, far]) == [1, 1]
    assert overlaps([near, near], [near, far]) == [1, 0]
    assert overlaps([], [near, far]) == [0, 0]
    assert score_boxes([[]], [[near, far]])["precision50"] == 0


def test_boxes_without_area_do_not_divide_by_zero() -> None:
    assert iou((1, 1, 1, 1), (1, 1, 1, 1)) == 0
    assert iou((5, 5, 1, 1), (0, 0, 9, 9)) == 0


def test_iou_of_pixels_by_counting() -> None:
    draw = random.Random(3)
    for _ in range(100):
        first, second = (
            (x, y, x + draw.randrange(1, 9), y + draw.randrange(1, 9)) for x, y in _corners(draw)
        )
        cells = [
            {(x, y) for x in range(left, right) for y in range(top, bottom)}
            for left, top, right, bottom in (first, second)
        ]
        expected = len(cells[0] & cells[1]) / len(cells[0] | cells[1])
        assert iou(first, second) == pytest.approx(expected)


def test_refuses() -> None:
    for predicted, true in (([], []), ([[]], []), ([[]], [[]])):
        with pytest.raises(DataError, match="true box"):
            score_boxes(predicted, true)


def _corners(draw: random.Random) -> list[tuple[int, int]]:
    return [(draw.randrange(12), draw.randrange(12)) for _ in range(2)]


def test_a_true_box_is_matched_once() -> None:
    box = (0.0, 0.0, 10.0, 10.0)
    assert match([box, box], [box]) == [0, None]
    assert score_boxes([[box, box]], [[box, (50.0, 50.0, 60.0, 60.0)]])["precision50"] == 0.5
