"""Exact match with one of the accepted answers, after case and spaces are folded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lockadapt.data.sample import Sample
from lockadapt.metrics.vqa import exact_match
from lockadapt.rewards.base import Reward, references_of


@dataclass(frozen=True)
class ExactReward(Reward):
    """1 for an accepted answer, else 0, also where ten people answered."""

    name: ClassVar[str] = "exact"

    def score(self, samples: Sequence[Sample], answers: Sequence[str]) -> list[float]:
        """See `exact_match`."""
        accepted = references_of(samples)
        return [exact_match(answer, texts) for answer, texts in zip(answers, accepted, strict=True)]
