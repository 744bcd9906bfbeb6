"""Captioning: a sentence about an image."""

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
from lockadapt.objectives.answer_tokens import answer_loss
from lockadapt.objectives.base import Report


@dataclass(frozen=True)
class Caption:
    """Cross-entropy of the caption; scored by CIDEr-D, BLEU-4 and ROUGE-L against all captions of the image."""

    weight: float = 1.0
    ratio: float = 1.0
    answers: tuple[str, ...] | None = None
    max_new_tokens: int = 32
    kind: str = "caption"

    def collate(self, items: Sequence[Encoded], images: ImageInputs, pad_id: int, name: str) -> Batch:
        """See `Objective.collate`."""
        return collate(items, images, pad_id, name)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, Report]:
        """See `Objective.loss`."""
        return answer_loss(model, batch)

    def score(self, samples: Sequence[Sample], predictions: Sequence[str]) -> dict[str, Any]:
        """`{"cider", "bleu4", "rouge_l", "n", "tokenizer"}`; an image with several rows is scored once."""
        first: dict[str, tuple[str, tuple[str, ...]]] = {}
        for sample, prediction in zip(samples, predictions, strict=True):
            first.setdefault(sample.images[0].key, (prediction, sample.references or (sample.answer,)))
        return score_captions([pair[0] for pair in first.values()], [pair[1] for pair in first.values()])
