"""Scores of boxes: intersection over union, the share above a threshold, precision and recall."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lockadapt.errors import DataError

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge, in one unit for all boxes of an image."""

THRESHOLD = 0.5
"""Smallest IoU at which a predicted box counts as right (RefCOCO's Acc@0.5, COCO's AP50)."""


def iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes, in 0..1; 0 where both are without area.

    Args:
        first: left, top, right, bottom.
        second: in the same unit.

    Returns:
        The area that both cover, divided by the area that either covers.
    """
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = width * height if width > 0 and height > 0 else 0.0
    union = _area(first) + _area(second) - shared
    return shared / union if union > 0 else 0.0


def match(predicted: Sequence[Box], true: Sequence[Box], threshold: float = THRESHOLD) -> list[int | None]:
    """Assign predicted boxes to true ones as COCO's evaluation does for detections of equal confidence.

    Each predicted box, in the order given, takes the true box of the largest IoU that none before it took.

    Args:
        predicted: boxes of an image, the most certain first.
        true: its annotated boxes.
        threshold: smallest IoU of a match.

    Returns:
        For each predicted box the index of its true box, or None.
    """
    taken: set[int] = set()
    matches: list[int | None] = []
    for box in predicted:
        best, most = None, min(threshold, 1 - 1e-10)
        for index, target in enumerate(true):
            overlap = iou(box, target)
            # As pycocotools: of equal overlaps the last wins.
            if index not in taken and overlap >= most:
                best, most = index, overlap
        matches.append(best)
        if best is not None:
            taken.add(best)
    return matches


def overlaps(predicted: Sequence[Box], true: Sequence[Box]) -> list[float]:
    """The IoU of each true box with the predicted box that belongs to it.

    Pairs are formed one to one, the largest IoU first. Where a single box is true, the first predicted box
    counts and no other, as in RefCOCO: a model cannot gain by naming many.

    Args:
        predicted: boxes of an image.
        true: its annotated boxes.

    Returns:
        One IoU a true box; 0 where no box is left for it.
    """
    if len(true) == 1:
        return [iou(predicted[0], true[0]) if predicted else 0.0]
    pairs = sorted(
        ((iou(box, target), i, j) for i, box in enumerate(predicted) for j, target in enumerate(true)),
        key=lambda pair: (-pair[0], pair[1], pair[2]),
    )
    best: dict[int, float] = {}
    used: set[int] = set()
    for overlap, i, j in pairs:
        if i not in used and j not in best:
            used.add(i)
            best[j] = overlap
    return [best.get(j, 0.0) for j in range(len(true))]


def score_boxes(predictions: Sequence[Sequence[Box]], truths: Sequence[Sequence[Box]]) -> dict[str, Any]:
    """Score the boxes that were named for each phrase.

    `iou50` and `mean_iou` are means over true boxes (`overlaps`). Where a phrase has several true boxes,
    `precision50` and `recall50` are added, over all phrases (`match`); precision is 0 where nothing was
    predicted.

    Args:
        predictions: boxes for each phrase, in the order in which the model named them; none where its
            answer holds no box.
        truths: annotated boxes for each phrase, at least one.

    Returns:
        `{"iou50", "mean_iou", "n", "unparsed"}`, where `n` counts phrases and `unparsed` those without a
        predicted box; with several true boxes also `precision50` and `recall50`.

    Raises:
        DataError: no phrase, not one prediction a phrase, or a phrase without a true box.
    """
    if not truths or len(predictions) != len(truths) or not all(truths):
        raise DataError(
            f"{len(predictions)} predictions for {len(truths)} phrases with boxes",
            where="box scoring",
            fix="give one list of predicted boxes for each phrase, and at least one true box",
        )
    pairs = list(zip(predictions, truths, strict=True))
    ious = [value for predicted, true in pairs for value in overlaps(predicted, true)]
    scores: dict[str, Any] = {
        "iou50": sum(value >= THRESHOLD for value in ious) / len(ious),
        "mean_iou": sum(ious) / len(ious),
        "n": len(truths),
        "unparsed": sum(not predicted for predicted in predictions),
    }
    if any(len(true) > 1 for true in truths):
        right = sum(index is not None for predicted, true in pairs for index in match(predicted, true))
        scores["precision50"] = right / max(sum(len(predicted) for predicted in predictions), 1)
        scores["recall50"] = right / len(ious)
    return scores


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
