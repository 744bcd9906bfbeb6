"""Dialogue: several turns about the same images; every assistant turn is learned."""

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
from lockadapt.metrics.captions import score_captions
from lockadapt.metrics.vqa import exact_match
from lockadapt.objectives.answer_tokens import answer_loss
from lockadapt.objectives.base import Report


@dataclass(frozen=True)
class Dialogue:
    """Cross-entropy of all assistant turns; the last turn is predicted from the true turns before it and scored."""

    weight: float = 1.0
    ratio: float = 1.0
    answers: tuple[str, ...] | None = None
    max_new_tokens: int = 64
    kind: str = "dialogue"

    def collate(self, items: Sequence[Encoded], images: ImageInputs, pad_id: int, name: str) -> Batch:
        """See `Objective.collate`."""
        return collate(items, images, pad_id, name)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, Report]:
        """See `Objective.loss`."""
        return answer_loss(model, batch)

    def score(self, samples: Sequence[Sample], predictions: Sequence[str]) -> dict[str, Any]:
        """`{"exact_match", "rouge_l", "n"}` of the last turns."""
        references = [sample.references or (sample.answer,) for sample in samples]
        matches = [exact_match(p, r) for p, r in zip(predictions, references, strict=True)]
        rouge = score_captions(list(predictions), references)["rouge_l"]
        return {"exact_match": sum(matches) / len(matches), "rouge_l": rouge, "n": len(matches)}
