"""Samples that say where something is: a phrase about an image, and its boxes as the text to learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from lockadapt.data.boxes import (
    Coordinates,
    jittered_box,
    mirrored_box,
    names_a_side,
    relative_box,
    write_boxes,
)
from lockadapt.data.images import image_size
from lockadapt.data.problems import ROW_ERRORS, quote
from lockadapt.data.readers.columns import RowRules, clean_text
from lockadapt.data.readers.source import GROUNDING_PROMPT, PHRASE_MARK
from lockadapt.data.sample import ImageRef, Sample, question_answer
from lockadapt.errors import DataError
from lockadapt.metrics.boxes import Box

MAX_PIXELS = 100_000_000
"""Of images whose sizes are asked for."""
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Grounded:
    """A phrase and its boxes as a row gives them.

    Attributes:
        phrase: what is meant, unchecked.
        boxes: from `box_numbers`, at least one.
        images: of the row, exactly one if it is right.
        where: the row's place.
        sample_id: the id in the source, if any.
    """

    phrase: object
    boxes: Sequence[Box]
    images: tuple[ImageRef, ...]
    where: str
    sample_id: str | None = None


def grounding_samples(row: Grounded, rules: RowRules, coordinates: Coordinates | None = None) -> list[Sample]:
    """Write the boxes of a phrase as an answer; with `rules.boxes.flip`, of the mirror image as well.

    The header of an image is read where its size is needed. An image that cannot be read is left to the scan
    of all images, which says so.

    Args:
        row: phrase, boxes and image.
        rules: how boxes are given and written.
        coordinates: of the boxes, where the format says so; default: as in `rules`.

    Returns:
        One sample, or two.

    Raises:
        DataError: not one image, no phrase, no box, one that is empty or out of the image, or a flip of a
            phrase that says left or right.
    """
    if len(row.images) != 1 or not row.boxes:
        raise DataError(
            f"the row has {len(row.images)} images and {len(row.boxes)} boxes",
            where=row.where,
            fix="give each phrase one image, and at least one box",
        )
    phrase, (image,), how = clean_text(row.phrase, "phrase", row.where), row.images, rules.boxes
    coordinates = coordinates or how.coordinates
    size = None if coordinates == "normalised" else _size(image, rules, row.where)
    known = size is not None or coordinates == "normalised"
    boxes = [relative_box(box, coordinates, size, row.where) if known else WHOLE for box in row.boxes]
    if how.jitter:
        draw = Random(f"{row.where} {phrase}")
        boxes = [jittered_box(box, how.jitter, draw) for box in boxes]
    samples = [_sample(phrase, boxes, image, row, rules)]
    if how.flip:
        if names_a_side(phrase):
            raise DataError(
                f"the phrase {quote(phrase)} says left or right, which is wrong of the mirror image",
                where=row.where,
                fix="set `flip: false`, or move such rows to an objective of their own without it",
            )
        mirror = replace(image, key=f"{image.key} mirrored", mirrored=True)
        samples.append(_sample(phrase, [mirrored_box(box) for box in boxes], mirror, row, rules))
    return samples


def _sample(phrase: str, boxes: Sequence[Box], image: ImageRef, row: Grounded, rules: RowRules) -> Sample:
    answer = write_boxes(boxes, rules.boxes.format)
    return question_answer(
        (rules.prompt or GROUNDING_PROMPT).replace(PHRASE_MARK, phrase),
        answer,
        [image],
        row.where,
        references=(answer,),
        sample_id=row.sample_id,
        boxes=tuple(boxes),
    )


def _size(image: ImageRef, rules: RowRules, where: str) -> tuple[int, int] | None:
    if image.key not in rules.sizes:
        try:
            rules.sizes[image.key] = image_size(image, MAX_PIXELS, where)
        except ROW_ERRORS:
            rules.sizes[image.key] = None
    return rules.sizes[image.key]
