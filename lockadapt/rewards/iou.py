"""Intersection over union of the boxes that an answer names with the true ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lockadapt.data.boxes import BoxFormat, parse_boxes
from lockadapt.data.sample import Sample
from lockadapt.metrics.boxes import overlaps
from lockadapt.rewards.base import Reward, RewardAccess, require


@dataclass(frozen=True)
class IouReward(Reward):
    """The mean IoU over a row's true boxes, paired as `lockadapt eval` pairs them; in 0..1.

    Attributes:
        box_format: how answers write boxes; None: any known way.
    """

    name: ClassVar[str] = "iou"

    box_format: BoxFormat | None = None

    @classmethod
    def make(cls, settings: Mapping[str, Any], samples: Sequence[Sample], access: RewardAccess) -> Reward:
        """Makes it; every row must have boxes."""
        require(cls.name, samples, lambda sample: sample.boxes, "boxes")
        return cls(**settings)

    def score(self, samples: Sequence[Sample], answers: Sequence[str]) -> list[float]:
        """See `overlaps`; an answer without a box scores 0."""
        scores = []
        for sample, answer in zip(samples, answers, strict=True):
            ious = overlaps(parse_boxes(answer, self.box_format), sample.boxes)
            scores.append(sum(ious) / len(ious))
        return scores
