"""The one shape of an objective: its collator, its loss, its evaluator. The trainer only mixes what these give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from lockadapt.data.batch import Batch
from lockadapt.data.encode import Encoded
from lockadapt.data.pixels import ImageInputs
from lockadapt.data.sample import Sample

Report = dict[str, torch.Tensor]
"""What a loss says beside itself: detached scalars, averaged over micro-batches in the metrics."""


class Objective(Protocol):
    """One thing to learn. Adding an objective is adding one file with one class of this shape.

    Attributes:
        kind: what it is (`caption`, `vqa`, `dialogue`).
        weight: factor on its loss in a mixed run.
        ratio: its share of micro-batches, relative to the others'.
        answers: a closed list that evaluation ranks, or None to generate.
        max_new_tokens: the longest generated answer.
    """

    @property
    def kind(self) -> str: ...

    @property
    def weight(self) -> float: ...

    @property
    def ratio(self) -> float: ...

    @property
    def answers(self) -> tuple[str, ...] | None: ...

    @property
    def max_new_tokens(self) -> int: ...

    def collate(
        self,
        items: Sequence[Encoded],
        images: ImageInputs,
        pad_id: int,
        name: str,
        row_tokens: int | None = None,
    ) -> Batch:
        """Encoded samples -> the batch that `loss` takes; `row_tokens` as in `lockadapt.data.batch.collate`."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, Report]:
        """The batch's loss (scalar, normalised by itself, with graph) and a report. `model` may be wrapped."""
        ...

    def score(self, samples: Sequence[Sample], predictions: Sequence[str]) -> dict[str, Any]:
        """Metrics of predicted answers, in the shape that `lockadapt eval --json` prints."""
        ...


Objectives = Mapping[str, Objective]
"""The objectives of a run by name."""
