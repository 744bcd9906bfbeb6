"""Whether an answer has a form: a regular expression that all of it must match."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lockadapt.data.sample import Sample
from lockadapt.errors import RecipeError
from lockadapt.rewards.base import Reward, RewardAccess


@dataclass(frozen=True)
class FormatReward(Reward):
    """1 where the whole answer, without outer spaces, matches, else 0.

    Attributes:
        pattern: of Python's `re`; `.` matches line breaks too.
    """

    name: ClassVar[str] = "format"
    reads_thoughts: ClassVar[bool] = True

    pattern: str = ""

    @classmethod
    def make(cls, settings: Mapping[str, Any], samples: Sequence[Sample], access: RewardAccess) -> Reward:
        """Makes it; the pattern must be one."""
        try:
            re.compile(settings["pattern"])
        except re.error as error:
            raise RecipeError(
                f"{settings['pattern']!r} is no regular expression: {error}",
                where="rewards.format.pattern",
                fix="correct it; a backslash in YAML belongs in single quotes",
            ) from error
        return cls(**settings)

    def score(self, samples: Sequence[Sample], answers: Sequence[str]) -> list[float]:
        """See `re.fullmatch`."""
        return [
            float(re.fullmatch(self.pattern, answer.strip(), re.DOTALL) is not None) for answer in answers
        ]
