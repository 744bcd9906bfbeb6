"""Captioning: a sentence about an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lockadapt.data.sample import Sample
from lockadapt.metrics.captions import score_captions
from lockadapt.objectives.answer_tokens import AnswerObjective


@dataclass(frozen=True)
class Caption(AnswerObjective):
    """Cross-entropy of the caption; scored by CIDEr-D, BLEU-4, ROUGE-L against all captions of the image."""

    kind: ClassVar[str] = "caption"

    def score(self, samples: Sequence[Sample], predictions: Sequence[str]) -> dict[str, Any]:
        """`{"cider", "bleu4", "rouge_l", "n", "tokenizer"}`; an image with several rows is scored once."""
        first: dict[str, tuple[str, tuple[str, ...]]] = {}
        for sample, prediction in zip(samples, predictions, strict=True):
            first.setdefault(sample.images[0].key, (prediction, sample.references or (sample.answer,)))
        return score_captions([pair[0] for pair in first.values()], [pair[1] for pair in first.values()])
