"""Boxes survive the way into text and back; what is no box, in rows or in answers, never passes for one."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lockadapt.data.boxes import (
    FORMATS,
    BoxFormat,
    box_numbers,
    jittered_box,
    mirrored_box,
    names_a_side,
    parse_boxes,
    relative_box,
    write_boxes,
)
from lockadapt.errors import DataError
from lockadapt.metrics.boxes import Box

edges = st.floats(0, 1)
boxes = (
    st.tuples(edges, edges, edges, edges)
    .map(lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3])))
    .filter(lambda b: b[2] > b[0] and b[3] > b[1])
)
fragments = st.sampled_from(
    ['{"bbox_2d": [', "]", "}", "<loc0", "12>", "<loc1023>", "(1,2),(", ", ", "[", "9" * 30, "-1", "NaN", " "]
)


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("qwen", '{"bbox_2d": [100, 200, 300, 1000]}'),
        ("paligemma", "<loc0205><loc0102><loc1023><loc0307>"),
        ("plain", "[100, 200, 300, 1000]"),
    ],
)
def test_text_of_each_format(format: BoxFormat, text: str) -> None:
    assert write_boxes([(0.1, 0.2, 0.3, 1.0)], format) == text


def test_several_boxes() -> None:
    two: list[Box] = [(0.1, 0.2, 0.3, 0.4), (0.5, 0.5, 0.6, 0.7)]
    assert (
        write_boxes(two, "qwen") == '[{"bbox_2d": [100, 200, 300, 400]}, {"bbox_2d": [500, 500, 600, 700]}]'
    )
    assert write_boxes(two, "plain") == "[100, 200, 300, 400], [500, 500, 600, 700]"
    for format in ("qwen", "plain"):
        assert parse_boxes(write_boxes(two, format), format) == two


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=100, deadline=None)
@given(some=st.lists(boxes, min_size=1, max_size=3))
@example(some=[(0.0, 0.99999, 1.0, 1.0)])
def test_round_trip(format: BoxFormat, some: list[Box]) -> None:
    text = write_boxes(some, format)
    # PaliGemma's last token is 1023 / 1024, so that a thin box at that edge begins one unit further in.
    unit = 2 / 1024 if format == "paligemma" else 1.6e-3
    for again in (parse_boxes(text, format), parse_boxes(text)):
        assert len(again) == len(some)
        for box, back in zip(some, again, strict=True):
            assert back == pytest.approx(box, abs=unit)


@settings(max_examples=300, deadline=None)
@given(
    text=st.text() | st.lists(fragments | st.text(max_size=3), max_size=20).map("".join),
    format=st.sampled_from([*FORMATS, None]),
)
def test_any_answer_is_read(text: str, format: BoxFormat | None) -> None:
    for left, top, right, bottom in parse_boxes(text, format):
        assert 0 <= left < right <= 1
        assert 0 <= top < bottom <= 1


def test_what_models_write_around_boxes() -> None:
    fenced = '```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "cat"},\n {"bbox_2d":[5,6,7,8.5]}]\n```'
    assert parse_boxes(fenced, "qwen") == [(0.001, 0.002, 0.003, 0.004), (0.005, 0.006, 0.007, 0.0085)]
    assert parse_boxes("<|box_start|>(10,20),(30,40)<|box_end|>", "qwen") == [(0.01, 0.02, 0.03, 0.04)]
    assert parse_boxes("It is at [10,20, 30,40].", "plain") == [(0.01, 0.02, 0.03, 0.04)]
    assert len(parse_boxes("<loc0001><loc0002><loc0003><loc0004> cat ; " * 2, "paligemma")) == 2


@pytest.mark.parametrize(
    "text",
    [
        "[30, 20, 10, 40]",
        "[1, 2, 3]",
        "[1, 2, 3, 4000]",
        "[-1, 2, 3, 4]",
        "[10, 20, 30, 40",
        "[1, 1, 1, 1]",
        "",
    ],
)
def test_what_is_no_box(text: str) -> None:
    assert parse_boxes(text) == []


def test_coordinates() -> None:
    expected = (0.1, 0.25, 0.6, 0.75)
    assert relative_box((20, 25, 120, 75), "xyxy", (200, 100), "row") == pytest.approx(expected)
    assert relative_box((20, 25, 100, 50), "xywh", (200, 100), "row") == pytest.approx(expected)
    assert relative_box((0.1, 0.25, 0.6, 0.75), "normalised", None, "row") == expected


def test_rounding_of_annotations_is_cut_off() -> None:
    assert relative_box((-0.5, 0, 100.9, 50), "xyxy", (100, 50), "row") == (0, 0, 1, 1)


@pytest.mark.parametrize(
    "value",
    [
        [1, 2, 3],
        [1, 2, 3, math.nan],
        [1, 2, 3, math.inf],
        [1, 2, 3, 10**400],
        [True, 1, 2, 3],
        ["1", 2, 3, 4],
        None,
        7,
        {},
        "one box",
        "[" * 5000,
    ],
)
def test_no_four_numbers(value: Any) -> None:
    with pytest.raises(DataError, match="not four finite numbers"):
        box_numbers(value, "row")


@pytest.mark.parametrize(
    "value", [[1, 2, 3, 4.5], (1, 2, 3, 4.5), "[1, 2, 3, 4.5]", "1 2 3 4.5", "1,2,3,4.5"]
)
def test_four_numbers(value: Any) -> None:
    assert box_numbers(value, "row") == (1, 2, 3, 4.5)


@pytest.mark.parametrize(
    ("box", "coordinates", "message"),
    [
        ((10, 10, 10, 20), "xyxy", "empty"),
        ((30, 10, 20, 20), "xyxy", "empty"),
        ((10, 10, 0, 5), "xywh", "empty"),
        ((10, 10, 110, 20), "xyxy", "reaches out"),
        ((-9, 10, 20, 20), "xyxy", "reaches out"),
        ((100, 10, 0.5, 5), "xywh", "reaches out"),
        ((10, 10, 20, 20), "normalised", "reaches out"),
    ],
)
def test_boxes_that_are_none_of_their_image(box: Box, coordinates: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        relative_box(box, coordinates, (100, 50), "rows.jsonl:7")
    assert error.value.where == "rows.jsonl:7"


@settings(max_examples=50, deadline=None)
@given(box=boxes, jitter=st.floats(0, 0.45), seed=st.integers(0, 99))
def test_jitter_stays_within_its_bounds_and_the_image(box: Box, jitter: float, seed: int) -> None:
    moved = jittered_box(box, jitter, Random(seed))
    sides = (box[2] - box[0], box[3] - box[1]) * 2
    for before, after, side in zip(box, moved, sides, strict=True):
        assert abs(after - before) <= jitter * side + 1e-12
        assert 0 <= after <= 1


def test_mirror() -> None:
    assert mirrored_box((0.1, 0.2, 0.4, 0.9)) == pytest.approx((0.6, 0.2, 0.9, 0.9))


def test_sides_in_words() -> None:
    assert all(
        map(names_a_side, ("the left man", "Right-most cup", "rightmost", "on the LEFT", "left-hand one"))
    )
    assert not any(map(names_a_side, ("a bright lamp", "leftover food", "an upright post", "the middle one")))
