"""The recipe's sections about rewards: what a stage learns from, when it stops. Does not import torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lockadapt.recipe.sections import Positive, Section, Text

RewardWeight = Annotated[float, Field(ge=-1e6, le=1e6)]
WEIGHT = "factor in the sum of rewards"


class RewardSection(Section):
    """A reward without keys of its own."""

    weight: RewardWeight = Field(default=1.0, description=WEIGHT)


class IouSection(RewardSection):
    """Mean IoU of the boxes that an answer names."""

    box_format: Literal["qwen", "paligemma", "plain"] | None = Field(
        default=None, description="how answers write boxes; default: any of the three ways"
    )


class RetrievalSection(RewardSection):
    """Reciprocal rank of a row's image among others, by a finished contrastive run."""

    run: Text = Field(description="folder of a run with an objective of the kind itc")
    pool: Annotated[int, Field(ge=2, le=65_536)] = Field(
        default=256, description="maximum number of training images an answer is compared with"
    )


class FormatSection(RewardSection):
    """Whether the whole answer matches a pattern."""

    pattern: Text = Field(description="regular expression of Python's `re`, matched by the whole answer")


class FunctionSection(RewardSection):
    """A function of the user's own."""

    function: Text = Field(description="`file.py:name`; runs only with `lockadapt train --allow-reward-code`")


class RewardsSection(Section):
    """Rewards of a grpo stage; each that is given counts, `{}` with weight 1."""

    vqa: RewardSection | None = Field(
        default=None, description="VQA accuracy: official for ten references, else exact match"
    )
    exact: RewardSection | None = Field(default=None, description="exact match with an accepted answer")
    iou: IouSection | None = Field(default=None, description="mean IoU with the row's boxes")
    caption: RewardSection | None = Field(default=None, description="CIDEr-D against the references, 0 to 10")
    retrieval: RetrievalSection | None = Field(
        default=None, description="reciprocal rank of the row's image, found by the answer"
    )
    format: FormatSection | None = Field(default=None, description="1 if the answer matches a pattern")
    function: FunctionSection | None = Field(default=None, description="a function of your own")


class GuardSection(Section):
    """When a stage with a method stops, because it no longer learns what it should."""

    steps: Positive = Field(
        default=30, description="consecutive optimiser steps without a signal that stop the stage"
    )
    max_kl: Annotated[float, Field(gt=0)] = Field(
        default=10.0,
        description="grpo with `trl.beta` above 0: the stage stops when the mean KL per token, in nats, from "
        "the model at its start exceeds this",
    )
