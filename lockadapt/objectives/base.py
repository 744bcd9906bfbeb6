"""The one shape of an objective: its encoder, its collator, its loss, its evaluator.

The trainer only mixes what these give.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import nn
from transformers import TrainerCallback

from lockadapt.data.batch import Batch, collate
from lockadapt.data.boxes import BoxRules
from lockadapt.data.encode import Encoded, Encoder, EncodeReport
from lockadapt.data.pixels import Frozen, ImageInputs
from lockadapt.data.sample import Sample
from lockadapt.data.sources import SourceDraw
from lockadapt.features.policy import ImagePolicy
from lockadapt.objectives.image_generation import ImageGenerationConfig

Report = dict[str, torch.Tensor]
"""What a loss says beside itself: detached scalars, averaged over micro-batches in the metrics.

`tokens` is always there:
how many terms (answer tokens, image tokens, pairs) the loss is the mean of."""

Progress = Callable[[int, int], None]
Row = dict[str, Any]
"""One prediction: where, images, question, answer, truth."""


class EvaluationContext(Protocol):
    """What evaluation lends to an objective."""

    @property
    def model(self) -> nn.Module:
        """The model, in eval mode, possibly wrapped by PEFT."""
        ...

    @property
    def encoder(self) -> Encoder:
        """The encoder of the model's processor."""
        ...

    @property
    def images(self) -> ImageInputs:
        """Where pixels, features or image token ids of the samples' images come from."""
        ...

    @property
    def batch_size(self) -> int:
        """Samples at a time."""
        ...

    @property
    def progress(self) -> Progress | None:
        """Told (done, all)."""
        ...

    def answers(
        self, samples: Sequence[Sample], closed: Sequence[str] | None, max_new_tokens: int
    ) -> list[str]:
        """Answers to the last turns: the likeliest of a closed list, or generated greedily."""
        ...

    def generate_images(self, captions: Sequence[str], config: ImageGenerationConfig) -> torch.Tensor:
        """Generates the image token ids of an image for each caption, int64 (captions, tokens)."""
        ...

    def probe(
        self, tower: str, samples: Sequence[Sample], image_token_ids: torch.Tensor
    ) -> dict[str, Any] | None:
        """Whether image tokens generated for samples show their captions, by a probe on a frozen tower."""
        ...


@dataclass(frozen=True)
class Objective(ABC):
    """One thing to learn.

    Adding an objective is adding one file with one subclass, which gives at least loss and scores.

    Attributes:
        kind: what it is (`caption`, `vqa`, `itc` …).
        packs: whether samples of one image can share a row.
        plannable: whether its loss can be traced without weights, for `lockadapt plan`.
        drawable: whether its rows may be made when they are drawn; else all are made before step 1.
        divisible: whether the loss of a batch is the mean of its parts' losses, weighed by their terms.
        weight: factor on its loss in a mixed run.
        sampling_weight: its share of micro-batches, relative to the others'.
        batch_size: samples in one of its micro-batches; None: the run's.
        sources: how the rows of each of its sources are drawn; none: there is one, shuffled.
    """

    kind: ClassVar[str]
    packs: ClassVar[bool] = False
    plannable: ClassVar[bool] = False
    drawable: ClassVar[bool] = True
    divisible: ClassVar[bool] = True

    weight: float = 1.0
    sampling_weight: float = 1.0
    batch_size: int | None = None
    sources: tuple[SourceDraw, ...] = ()

    @property
    def scored_as(self) -> str:
        """Its name among the scores where the recipe does not give it one."""
        return self.kind

    @property
    def rows(self) -> str:
        """The kind of rows that its readers give (`caption`, `vqa`, `dialogue`, `grounding`, `text`)."""
        return self.kind

    @property
    def box_rules(self) -> BoxRules:
        """How rows give boxes and answers spell them, where they hold any."""
        return BoxRules()

    @property
    def parts(self) -> tuple[str, ...]:
        """What it trains beside LoRA: `projector`, `retrieval`, `generation`."""
        return ("projector",)

    @property
    def frozen(self) -> Frozen:
        """What its images become before a batch is made."""
        return "tower"

    @property
    def query_tokens(self) -> int:
        """How many query tokens it reads embeddings behind."""
        return 0

    def prepare(self, model: nn.Module) -> None:  # noqa: B027  # most need nothing
        """Adds to a model what only this objective needs (`RETRIEVAL`); a second call does nothing."""

    def encode(
        self, encoder: Encoder, samples: Sequence[Sample], progress: Progress | None = None
    ) -> EncodeReport:
        """Samples -> token arrays, as this objective's collator wants them; by default conversations."""
        return encoder.encode(samples, progress)

    def keep(self, model: nn.Module, rows: Sequence[Encoded], policy: ImagePolicy) -> list[Encoded]:
        """Computes once what never changes of encoded rows, beside their images; by default nothing.

        Args:
            model: as it trains, with its adapters.
            rows: encoded, of training or validation.
            policy: where it is kept; its `note` is told what is.

        Returns:
            The rows, as `collate` takes them.
        """
        return list(rows)

    def collate(
        self,
        items: Sequence[Encoded],
        images: ImageInputs,
        pad_id: int,
        name: str,
        max_row_tokens: int | None = None,
    ) -> Batch:
        """Makes the batch that `loss` takes; arguments as in `lockadapt.data.batch.collate`."""
        return collate(items, images, pad_id, name, max_row_tokens if self.packs else None)

    def terms(self, batch: Batch) -> int:
        """How many terms the batch's loss is the mean of, before it is computed; by default its targets.

        Args:
            batch: from `collate`.

        Returns:
            What the report of `loss` says as `tokens`; 1 where a batch has no `targets`.
        """
        return len(batch["targets"]) if "targets" in batch else 1

    def random_numbers(self, model: nn.Module, batch: Batch, rows: int) -> Batch:
        """Draws what training changes at random, so that any division of a batch sees the same changes.

        Args:
            model: the one that trains, possibly wrapped.
            batch: any part of the micro-batch, for the shapes of its rows.
            rows: of the whole micro-batch, over all processes.

        Returns:
            Tensors on the CPU whose first dimension is `rows`; `loss` finds its rows of them in the batch.
            Nothing by default.
        """
        return {}

    def in_smaller_chunks(self) -> Objective | None:
        """The same objective in less memory a batch, of those that are not divisible; None: none."""
        return None

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, Report]:
        """The batch's loss (scalar, normalised by itself, with graph) and a report.

        `model` may be wrapped.
        """

    def after_step(self, model: nn.Module) -> None:  # noqa: B027  # most have no bounds
        """Called after every optimiser step, for what must stay within bounds."""

    def callbacks(self, folder: Path, processor: Any, rows: Sequence[Encoded]) -> list[TrainerCallback]:
        """Gives what the trainer calls while this objective trains.

        Args:
            folder: where pictures and the like may be written; it does not exist yet.
            processor: of the model.
            rows: a stage's validation rows of this objective or, where there are none, its training rows.

        Returns:
            Callbacks; none by default.
        """
        return []

    @abstractmethod
    def evaluate(
        self, context: EvaluationContext, samples: Sequence[Sample]
    ) -> tuple[dict[str, Any], list[Row]]:
        """Metrics in the shape that `lockadapt eval --json` prints, and every prediction as a row."""


Objectives = Mapping[str, Objective]
"""The objectives of a run by name."""


def prediction_row(sample: Sample, answer: str) -> Row:
    """One prediction as `lockadapt eval --predictions` writes it."""
    return {
        "where": sample.where,
        "images": [image.key for image in sample.images],
        "question": next((turn.text for turn in reversed(sample.turns) if turn.role == "user"), ""),
        "answer": answer,
        "truth": sample.answer,
    }
