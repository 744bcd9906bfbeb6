"""Visual question answering: a short answer to a question about an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lockadapt.data.batch import Batch, collate
from lockadapt.data.encode import Encoded
from lockadapt.data.pixels import ImageInputs
from lockadapt.data.sample import Sample
from lockadapt.metrics.vqa import score_answers
from lockadapt.objectives.answer_tokens import answer_loss
from lockadapt.objectives.base import Report


@dataclass(frozen=True)
class Vqa:
    """Cross-entropy of the answer; scored by the official ten-answer accuracy, or exact match with fewer answers."""

    weight: float = 1.0
    ratio: float = 1.0
    answers: tuple[str, ...] | None = None
    max_new_tokens: int = 32
    kind: str = "vqa"

    def collate(self, items: Sequence[Encoded], images: ImageInputs, pad_id: int, name: str) -> Batch:
        """See `Objective.collate`."""
        return collate(items, images, pad_id, name)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, Report]:
        """See `Objective.loss`."""
        return answer_loss(model, batch)

    def score(self, samples: Sequence[Sample], predictions: Sequence[str]) -> dict[str, Any]:
        """`{"accuracy", "by_answer_type", "n"}`."""
        references = [sample.references or (sample.answer,) for sample in samples]
        return score_answers(predictions, references, [sample.answer_type for sample in samples])
