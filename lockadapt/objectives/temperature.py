"""The learned temperature and bias of contrastive losses: where they start, and the bounds they keep."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lockadapt.objectives.similarity import Kind

NO_DECAY = ("logit_scale", "logit_bias")
"""Last parts of the parameters' names: weight decay would pull the temperature to 1 and the bias to 0."""

LARGEST_SCALE = 100.0
"""CLIP, arXiv 2103.00020 section 2.5."""
SMALLEST_SCALE = 1.0
"""open_clip's training loop: `logit_scale.clamp_(0, ln 100)`."""


class Temperature(nn.Module):
    """`scale()` and `bias()` of a contrastive loss, learned, in float32.

    Attributes:
        logit_scale: scalar, the natural logarithm of the scale.
        logit_bias: scalar, or None with InfoNCE, where it cancels.
    """

    def __init__(
        self, kind: Kind, negatives: int = 1, scale: float | None = None, learned: bool = True
    ) -> None:
        """Starts as `first_scale` and `first_bias` say.

        Args:
            kind: of the contrastive loss.
            negatives: how many there are for a positive pair.
            scale: where it starts instead.
            learned: else the scale stays there, as a buffer.
        """
        super().__init__()
        start = math.log(scale or first_scale(kind))
        self.logit_scale: Tensor
        if learned:
            self.logit_scale = nn.Parameter(torch.tensor(start, dtype=torch.float32))
        else:
            self.register_buffer("logit_scale", torch.tensor(start, dtype=torch.float32))
        self.logit_bias = (
            nn.Parameter(torch.tensor(first_bias(negatives), dtype=torch.float32))
            if kind == "sigmoid"
            else None
        )

    def scale(self) -> Tensor:
        """The factor on cosines, float32 scalar with graph."""
        return self.logit_scale.float().exp()

    def bias(self) -> Tensor | None:
        """What is added to logits, float32 scalar with graph, or None."""
        return None if self.logit_bias is None else self.logit_bias.float()

    def clamp_(self) -> None:
        """Back within bounds; to be called after each optimiser step."""
        clamp_scale_(self.logit_scale)


def first_scale(kind: Kind) -> float:
    """1 / 0.07 for InfoNCE (CLIP), 10 for sigmoid (SigLIP, arXiv 2303.15343 section 3.2)."""
    return 10.0 if kind == "sigmoid" else 1 / 0.07


def first_bias(negatives: int) -> float:
    """Bias that a sigmoid loss starts from: half of -ln(negatives for a positive pair), at most 0.

    -ln(negatives) is where the loss of embeddings that know nothing (cosine 0) is least. SigLIP starts there
    (-10 at 32,768 pairs), but big_vision's small run of 512 pairs starts at -2.71, not at -6.2: half is near
    that, and leaves positives a gradient that a first step does not have to win back.
    """
    return -math.log(max(1, negatives)) / 2


@torch.no_grad()
def clamp_scale_(logit_scale: Tensor) -> None:
    """Clamps a scale's logarithm, in place, to `SMALLEST_SCALE`..`LARGEST_SCALE`; stock classes' as well."""
    logit_scale.clamp_(math.log(SMALLEST_SCALE), math.log(LARGEST_SCALE))
