"""Boxes of objects as numbers and as text: checked, made relative to the image, written, and read back."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, get_args

from lockadapt.data.problems import quote
from lockadapt.errors import DataError
from lockadapt.metrics.boxes import Box

BoxFormat = Literal["qwen", "paligemma", "plain"]
Coordinates = Literal["xyxy", "xywh", "normalised"]
FORMATS: tuple[BoxFormat, ...] = get_args(BoxFormat)

SCALE = 1000
"""Coordinates in text are whole thousandths of the image's width and height, as in Qwen3-VL."""
BINS = 1024
"""Location tokens of PaliGemma, `<loc0000>` to `<loc1023>` (arXiv 2407.07726, section 3.2.1)."""
LOC_TOKENS = tuple(f"<loc{number:04d}>" for number in range(BINS))

PIXEL_SLACK, NORMALISED_SLACK = 1.0, 1e-3
"""How far a box may stick out of its image; annotations are rounded. What sticks out is cut off."""

_NUMBER = r"\s{0,9}([0-9]{1,6}(?:\.[0-9]{1,6})?)\s{0,9}"
_FOUR = ",".join([_NUMBER] * 4)
_BRACKETS = re.compile(rf"\[{_FOUR}\]")
_QWEN = re.compile(
    rf"bbox_2d[\"']?\s{{0,9}}:\s{{0,9}}\[{_FOUR}\]"
    rf"|\({_NUMBER},{_NUMBER}\)\s{{0,9}},\s{{0,9}}\({_NUMBER},{_NUMBER}\)"
)
_LOCS = re.compile(r"<loc([0-9]{4})>" * 4)
_SIDES = re.compile(r"\b(?:left|right)(?:most|ward|hand)?s?\b", re.IGNORECASE)


@dataclass(frozen=True)
class BoxRules:
    """How the boxes of rows become text.

    Attributes:
        format: of the text, see `write_boxes`.
        coordinates: of the boxes in rows: pixels, `xyxy` (left, top, right, bottom) or `xywh` (left, top,
            width, height); or `normalised`, xyxy as fractions of width and height.
        jitter: largest shift of an edge, as a fraction of the box's width or height.
        flip: whether each sample is followed by its mirror image.
    """

    format: BoxFormat = "qwen"
    coordinates: Coordinates = "xyxy"
    jitter: float = 0.0
    flip: bool = False


def box_numbers(value: Any, where: str) -> Box:
    """Check that a value of a row is four finite numbers.

    Args:
        value: a list, or the text of one, as CSV cells hold it; unchecked.
        where: the row's place, for messages.

    Returns:
        The numbers.

    Raises:
        DataError: it is anything else.
    """
    if isinstance(value, str):
        value = _listed(value)
    numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else []
    try:
        first, second, third, fourth = (_finite(number) for number in numbers)
    except (ValueError, OverflowError) as error:
        raise DataError(
            f"the box is {quote(value)}, not four finite numbers",
            where=where,
            fix="write four numbers, as in [12, 30, 96, 80], or remove the row",
        ) from error
    return first, second, third, fourth


def relative_box(box: Box, coordinates: Coordinates, size: tuple[int, int] | None, where: str) -> Box:
    """Make a box relative to its image.

    Args:
        box: from `box_numbers`.
        coordinates: what its numbers are, see `BoxRules`.
        size: width and height of the upright image in pixels; not needed for `normalised`.
        where: the row's place, for messages.

    Returns:
        Left, top, right and bottom as fractions of width and height, within 0..1, with an area.

    Raises:
        DataError: the box is empty, or sticks out of the image by more than rounding explains.
    """
    left, top, right, bottom = box
    if coordinates == "xywh":
        right, bottom = left + right, top + bottom
    slack, width, height = NORMALISED_SLACK, 1.0, 1.0
    if coordinates != "normalised" and size is not None:
        slack, (width, height) = PIXEL_SLACK, size
    if not (right > left and bottom > top):
        raise DataError(
            f"the box {quote(list(box))} is empty: it must end to the right of and below where it begins",
            where=where,
            fix=f"correct it, or say what its numbers are: `coordinates` is {coordinates}",
        )
    inside = -slack <= left and -slack <= top and right <= width + slack and bottom <= height + slack
    if not inside or min(right, width) <= max(left, 0) or min(bottom, height) <= max(top, 0):
        raise DataError(
            f"the box {quote(list(box))} reaches out of its image, which is {width:g} x {height:g}",
            where=where,
            fix=f"correct it, or say what its numbers are: `coordinates` is {coordinates}",
        )
    return (
        max(left, 0.0) / width,
        max(top, 0.0) / height,
        min(right, width) / width,
        min(bottom, height) / height,
    )


def write_boxes(boxes: Sequence[Box], format: BoxFormat) -> str:
    """Write boxes as the text that a model learns.

    `qwen` is the JSON of Qwen's models, `{"bbox_2d": [x1, y1, x2, y2]}`, several as a list; `plain` is
    `[x1, y1, x2, y2]`, several with commas between them; both in thousandths. `paligemma` writes top, left,
    bottom and right as location tokens, several with ` ; ` between them.

    Args:
        boxes: left, top, right and bottom as fractions of width and height; at least one.
        format: of the text.

    Returns:
        The text, which `parse_boxes` reads back to within half a unit, or one where a side is shorter; two of
        PaliGemma's at the right and lower edge, which no token stands for.
    """
    if format == "paligemma":
        whole = [_integers(box, BINS, BINS - 1) for box in boxes]
        return " ; ".join("".join(LOC_TOKENS[n] for n in (b[1], b[0], b[3], b[2])) for b in whole)
    lists = [list(_integers(box, SCALE, SCALE)) for box in boxes]
    if format == "plain":
        return ", ".join(map(str, lists))
    objects = [{"bbox_2d": numbers} for numbers in lists]
    return json.dumps(objects if len(objects) > 1 else objects[0])


def parse_boxes(text: str, format: BoxFormat | None = None) -> list[Box]:
    """Read the boxes that a model's answer names; whatever else stands there is skipped.

    `qwen` also reads `(x1,y1),(x2,y2)`, which Qwen2-VL writes between box tokens. A box without area, or
    with an edge beyond the image, is no box.

    Args:
        text: anything.
        format: of the boxes; None: the first of `FORMATS` that reads any.

    Returns:
        Left, top, right and bottom as fractions, in the order of the text; none where there is no box.
    """
    if format is None:
        return next(filter(None, (parse_boxes(text, known) for known in FORMATS)), [])
    pattern = {"qwen": _QWEN, "paligemma": _LOCS, "plain": _BRACKETS}[format]
    boxes: list[Box] = []
    for matched in pattern.finditer(text):
        first, second, third, fourth = (float(number) for number in matched.groups() if number is not None)
        if format == "paligemma":
            first, second, third, fourth = second, first, fourth, third
        unit = BINS if format == "paligemma" else SCALE
        if first < third <= unit and second < fourth <= unit:
            boxes.append((first / unit, second / unit, third / unit, fourth / unit))
    return boxes


def mirrored_box(box: Box) -> Box:
    """The box in the mirror image; `box` in fractions."""
    left, top, right, bottom = box
    return 1 - right, top, 1 - left, bottom


def names_a_side(text: str) -> bool:
    """Whether an English text says left or right, so that it is wrong of the mirror image."""
    return _SIDES.search(text) is not None


def jittered_box(box: Box, jitter: float, random: Random) -> Box:
    """Shift each edge at random by up to a fraction of the box's width or height.

    Args:
        box: in fractions.
        jitter: largest shift, below 0.5, so that an area stays.
        random: draws the shifts, uniformly.

    Returns:
        A box within the image.
    """
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    shifts = [random.uniform(-jitter, jitter) for _ in range(4)]
    return (
        max(0.0, left + shifts[0] * width),
        max(0.0, top + shifts[1] * height),
        min(1.0, right + shifts[2] * width),
        min(1.0, bottom + shifts[3] * height),
    )


def _integers(box: Box, scale: int, most: int) -> tuple[int, int, int, int]:
    """Edges in whole units; a side that rounding would close is one unit long."""
    edges: list[tuple[int, int]] = []
    for low, high in ((box[0], box[2]), (box[1], box[3])):
        first, last = min(round(low * scale), most), min(round(high * scale), most)
        if last <= first:
            first, last = (first, first + 1) if first < most else (most - 1, most)
        edges.append((first, last))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def _finite(number: Any) -> float:
    if type(number) not in (int, float) or not math.isfinite(number):
        raise ValueError(number)
    return float(number)


def _listed(text: str) -> Any:
    """The list that a cell spells, as JSON or as numbers with blanks or commas between them."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        parts = text.replace(",", " ").split()
    try:
        return [float(part) for part in parts]
    except ValueError:
        return text
