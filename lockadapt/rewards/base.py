"""The one shape of a reward: samples and answers in, a number for each answer out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from lockadapt.data.sample import ImageRef, Sample
from lockadapt.errors import DataError


class Embeds(Protocol):
    """Embeds images and texts in one space, as a finished contrastive run does."""

    def images(self, images: Sequence[ImageRef]) -> torch.Tensor:
        """Float32 (images, dimension), L2-normalised."""
        ...

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Float32 (texts, dimension), L2-normalised."""
        ...


@dataclass(frozen=True)
class RewardAccess:
    """What rewards may use from outside of their samples.

    Attributes:
        code: whether functions from files may run.
        embedder: opens a finished run that embeds; None: rewards that need one are refused.
    """

    code: bool = False
    embedder: Callable[[str], Embeds] | None = None


@dataclass(frozen=True)
class Reward(ABC):
    """Scores answers to the last turns of samples.

    Attributes:
        name: its key in recipes and metrics.
        reads_thoughts: whether it is shown what a model thinks before its answer, which evaluation drops.
        weight: factor in the sum of a stage's rewards.
    """

    name: ClassVar[str]
    reads_thoughts: ClassVar[bool] = False

    weight: float = 1.0

    @classmethod
    def make(cls, settings: Mapping[str, Any], samples: Sequence[Sample], access: RewardAccess) -> Reward:
        """Makes it from a recipe's keys; children may look at `samples` and `access`.

        Args:
            settings: its keys in the recipe.
            samples: training rows of the stage.
            access: what it may use from outside.

        Returns:
            The reward.
        """
        return cls(**settings)

    @abstractmethod
    def score(self, samples: Sequence[Sample], answers: Sequence[str]) -> list[float]:
        """Gives a finite number for each answer.

        Args:
            samples: whose last turns are answered; a sample may stand there several times.
            answers: as many.

        Returns:
            As many numbers.
        """


def require(reward: str, samples: Sequence[Sample], needed: Callable[[Sample], object], what: str) -> None:
    """Refuses rows that lack what a reward compares with.

    Args:
        reward: its name.
        samples: training rows.
        needed: what a row must have.
        what: its name, for the message.

    Raises:
        DataError: a row lacks it, and which.
    """
    lacking = next((sample for sample in samples if not needed(sample)), None)
    if lacking is not None:
        raise DataError(
            f"the reward {reward} compares answers with {what}, which the row lacks",
            where=lacking.where,
            fix=f"give rows {what}, or choose another reward",
        )


def references_of(samples: Sequence[Sample]) -> list[Sequence[str]]:
    """The accepted answers of each sample; its own answer where it lists none."""
    return [sample.references or (sample.answer,) for sample in samples]
