"""Dialogue: several turns about the same images; every assistant turn is learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lockadapt.data.sample import Sample
from lockadapt.metrics.captions import score_captions
from lockadapt.metrics.vqa import exact_match
from lockadapt.objectives.answer_tokens import AnswerObjective


@dataclass(frozen=True)
class Dialogue(AnswerObjective):
    """Cross-entropy of all assistant turns; the last one, predicted from the true turns before, is scored."""

    kind: ClassVar[str] = "dialogue"

    def score(self, samples: Sequence[Sample], predictions: Sequence[str]) -> dict[str, Any]:
        """`{"exact_match", "rouge_l", "n"}` of the last turns."""
        references = [sample.references or (sample.answer,) for sample in samples]
        matches = [exact_match(p, r) for p, r in zip(predictions, references, strict=True)]
        rouge = score_captions(list(predictions), references)["rouge_l"]
        return {"exact_match": sum(matches) / len(matches), "rouge_l": rouge, "n": len(matches)}
