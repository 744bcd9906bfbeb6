"""VQA accuracy: the official one where ten people answered, exact match elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lockadapt.data.sample import Sample
from lockadapt.metrics.vqa import answer_scores
from lockadapt.rewards.base import Reward, references_of


@dataclass(frozen=True)
class VqaReward(Reward):
    """What `lockadapt eval` scores questions by, for each answer; in 0..1."""

    name: ClassVar[str] = "vqa"

    def score(self, samples: Sequence[Sample], answers: Sequence[str]) -> list[float]:
        """See `answer_scores`."""
        return answer_scores(answers, references_of(samples))
