"""What the steps of a run return. `to_json()` of each is what its command prints with `--json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of a model on test rows.

    Attributes:
        scores: by objective and name, such as `scores["vqa"]["accuracy"]`; each objective has its own names
            (docs/objectives.md).
    """

    scores: Mapping[str, Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Return what `lockadapt eval --json` prints."""
        return {name: dict(values) for name, values in self.scores.items()}


@dataclass(frozen=True)
class MergeResult:
    """A merged folder, and the numbers of its proof: a fresh process against the trained model.

    Attributes:
        output: the folder, which Transformers loads without lockadapt.
        model_class: the stock class that it is loaded by.
        max_abs_logit_diff: largest difference of a logit.
        kl: mean KL divergence per position, in nats.
        top1_agreement: share of positions with the same likeliest token, 0 to 1.
        details: all numbers (docs/merging.md).
    """

    output: Path
    model_class: str
    max_abs_logit_diff: float
    kl: float
    top1_agreement: float
    details: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> MergeResult:
        """Take the fields from what a merge found."""
        return cls(
            Path(result["output"]),
            result["model_class"],
            result["max_abs_logit_diff"],
            result["kl"],
            result["top1_agreement"],
            result,
        )

    def to_json(self) -> dict[str, Any]:
        """Return what `lockadapt merge --json` prints."""
        return dict(self.details)


@dataclass(frozen=True)
class ExportResult:
    """A folder for another client, and the numbers of its proof.

    Attributes:
        target: for which client, as it was asked for.
        output: the folder.
        details: all numbers; which there are depends on the target (docs/exports.md).
    """

    target: str
    output: Path
    details: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> ExportResult:
        """Take the fields from what an export found."""
        return cls(result["target"], Path(result["output"]), result)

    def to_json(self) -> dict[str, Any]:
        """Return what `lockadapt export --json` prints."""
        return dict(self.details)


@dataclass(frozen=True)
class VerifyResult:
    """What a folder does when a fresh process loads it.

    Attributes:
        output: the folder.
        model_class: the stock class that it was loaded by.
        image_effect: largest change of an output when images are swapped; None: no image was shown.
        max_abs_logit_diff: largest difference of a logit from the trained model; None: compared with none.
        details: all numbers (docs/verify.md).
    """

    output: Path
    model_class: str
    image_effect: float | None
    max_abs_logit_diff: float | None
    details: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> VerifyResult:
        """Take the fields from what verifying found."""
        return cls(
            Path(result["output"]),
            result["model_class"],
            result["image_effect"],
            result.get("max_abs_logit_diff"),
            result,
        )

    def to_json(self) -> dict[str, Any]:
        """Return what `lockadapt verify --json` prints."""
        return dict(self.details)
