"""Rewards of answers that can be checked: one file each, all of the shape in `base`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lockadapt.data.sample import Sample
from lockadapt.rewards.base import Reward, RewardAccess
from lockadapt.rewards.caption import CaptionReward
from lockadapt.rewards.exact import ExactReward
from lockadapt.rewards.format import FormatReward
from lockadapt.rewards.function import FunctionReward
from lockadapt.rewards.iou import IouReward
from lockadapt.rewards.retrieval import RetrievalReward
from lockadapt.rewards.vqa import VqaReward

__all__ = ["REWARDS", "Reward", "RewardAccess", "make_rewards"]

REWARDS: dict[str, type[Reward]] = {
    "vqa": VqaReward,
    "exact": ExactReward,
    "iou": IouReward,
    "caption": CaptionReward,
    "retrieval": RetrievalReward,
    "format": FormatReward,
    "function": FunctionReward,
}


def make_rewards(
    wanted: Mapping[str, Mapping[str, Any]], samples: Sequence[Sample], access: RewardAccess
) -> dict[str, Reward]:
    """Makes the rewards of a stage.

    Args:
        wanted: a recipe's keys of each reward, by its name.
        samples: training rows of the stage, for rewards that compare with all of them.
        access: what rewards may use from outside.

    Returns:
        Rewards by name, in the order of `wanted`.

    Raises:
        LockadaptError: rows lack what a reward compares with, or it uses what is not allowed.
    """
    return {name: REWARDS[name].make(settings, samples, access) for name, settings in wanted.items()}
