"""Visual question answering: a short answer to a question about an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lockadapt.data.sample import Sample
from lockadapt.metrics.vqa import score_answers
from lockadapt.objectives.answer_tokens import AnswerObjective


@dataclass(frozen=True)
class Vqa(AnswerObjective):
    """Cross-entropy of the answer; scored by VQA accuracy (ten answers), or exact match with fewer."""

    kind: ClassVar[str] = "vqa"

    def score(self, samples: Sequence[Sample], predictions: Sequence[str]) -> dict[str, Any]:
        """`{"accuracy", "by_answer_type", "n"}`."""
        references = [sample.references or (sample.answer,) for sample in samples]
        return score_answers(predictions, references, [sample.answer_type for sample in samples])
