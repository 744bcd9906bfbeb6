"""CIDEr-D of a caption against its image's references, words weighed by all training rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lockadapt.data.sample import Sample
from lockadapt.metrics.cider import Rarity, cider_d
from lockadapt.metrics.ptb import tokenize
from lockadapt.rewards.base import Reward, RewardAccess, references_of


@dataclass(frozen=True)
class CaptionReward(Reward):
    """CIDEr-D, in 0..10 as `lockadapt eval` has it; a weight of 0.1 makes its range 0..1.

    Attributes:
        rarity: of words among the references of all training images. Among the captions of a batch, where
            one image stands several times, every weight would be another one.
    """

    name: ClassVar[str] = "caption"

    rarity: Rarity | None = None

    @classmethod
    def make(cls, settings: Mapping[str, Any], samples: Sequence[Sample], access: RewardAccess) -> Reward:
        """Counts words in the references of each training image once."""
        by_images = {tuple(image.key for image in sample.images): sample for sample in samples}
        return cls(**settings, rarity=Rarity(_tokens(list(by_images.values()))))

    def score(self, samples: Sequence[Sample], answers: Sequence[str]) -> list[float]:
        """See `cider_d`."""
        return cider_d([tokenize(answer) for answer in answers], _tokens(samples), self.rarity)


def _tokens(samples: Sequence[Sample]) -> list[list[list[str]]]:
    return [[tokenize(text) for text in accepted] for accepted in references_of(samples)]
