"""Preferences: rows with a chosen and a rejected answer, which a stage with `method: dpo` learns from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from lockadapt.data.batch import Batch, collate, on_device
from lockadapt.data.encode import IGNORED, Encoded, Encoder, EncodeReport
from lockadapt.data.sample import Sample, Turn
from lockadapt.errors import AssemblyError
from lockadapt.objectives.answer_tokens import answer_loss, sample_losses
from lockadapt.objectives.base import EvaluationContext, Objective, Progress, Report, Row, prediction_row


@dataclass(frozen=True)
class EncodedPair(Encoded):
    """A prompt with its chosen answer, as any row, and the same prompt with the rejected one.

    Attributes:
        rejected: the other row; labels of both are the last answer's alone.
    """

    rejected: Encoded | None = None


@dataclass(frozen=True)
class Preference(Objective):
    """Scored by how often the chosen answer is the likelier one."""

    kind: ClassVar[str] = "preference"
    drawable: ClassVar[bool] = False  # TRL's trainer computes its reference of all of them first

    def encode(
        self, encoder: Encoder, samples: Sequence[Sample], progress: Progress | None = None
    ) -> EncodeReport:
        """Encodes both answers of each row; a row of which one is too long is dropped.

        Args:
            encoder: of the model's processor.
            samples: rows of preferences.
            progress: told (done, all).

        Returns:
            Pairs, and what became of the others.

        Raises:
            AssemblyError: the LLM is an encoder-decoder.
            DataError: as `Encoder.encode`.
        """
        if encoder.apart:
            raise AssemblyError(
                "preferences of an encoder-decoder LLM are not learned", fix="use a decoder LLM"
            )
        others = [
            dataclasses.replace(sample, turns=(*sample.turns[:-1], Turn("assistant", sample.rejected)))
            for sample in samples
        ]
        report, other = encoder.encode(samples, progress), encoder.encode(others)
        whole = {id(row.sample): row for row in report.encoded}
        rejected = {id(row.sample): row for row in other.encoded}
        pairs: list[Encoded] = []
        for sample, turned in zip(samples, others, strict=True):
            if id(sample) in whole and id(turned) in rejected:
                pairs.append(_pair(whole[id(sample)], rejected[id(turned)], len(encoder.prompt_ids(sample))))
            elif id(sample) in whole:
                report.dropped.append(sample.where)
        report.encoded = pairs
        return report

    def loss(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, Report]:
        """The cross-entropy of the chosen answers, which tells whether images reach the model."""
        return answer_loss(model, batch)

    @torch.no_grad()
    def evaluate(
        self, context: EvaluationContext, samples: Sequence[Sample]
    ) -> tuple[dict[str, Any], list[Row]]:
        """Scores `{"accuracy", "margin", "n"}`: the margin is of log-likelihoods, in nats, on average.

        Args:
            context: lends model and images.
            samples: rows of preferences.

        Returns:
            Scores, and rows whose `answer` is the likelier of both.
        """
        context.model.eval()
        pairs = self.encode(context.encoder, samples).encoded
        margins: list[float] = []
        for start in range(0, len(pairs), context.batch_size):
            part = pairs[start : start + context.batch_size]
            items = [*part, *rejected_of(part)]
            batch = collate(items, context.images, context.encoder.tokenizer.pad_token_id, self.kind)
            batch = on_device(batch, next(context.model.parameters()).device)
            chosen, rejected = sample_losses(context.model, batch, len(items)).chunk(2)
            margins += (rejected - chosen).tolist()
            if context.progress:
                context.progress(len(margins), len(pairs))
        rows = [
            prediction_row(pair.sample, pair.sample.answer if margin > 0 else pair.sample.rejected)
            for pair, margin in zip(pairs, margins, strict=True)
        ]
        right = sum(margin > 0 for margin in margins)
        count = len(margins)
        return {"accuracy": right / count, "margin": sum(margins) / count, "n": count}, rows


def rejected_of(pairs: Sequence[Encoded]) -> list[Encoded]:
    """The rows of the rejected answers of pairs, in order."""
    return [pair.rejected for pair in pairs if isinstance(pair, EncodedPair) and pair.rejected is not None]


def _pair(chosen: Encoded, rejected: Encoded, prompt: int) -> EncodedPair:
    """Both rows, of which only what stands behind the prompt is scored."""
    shorter = min(len(chosen.input_ids), len(rejected.input_ids))
    differs = chosen.input_ids[:shorter] != rejected.input_ids[:shorter]
    # Where a tokenizer merges across the end of the prompt, answers begin before it.
    begin = min(prompt, int(np.argmax(differs)) if differs.any() else shorter)
    first, second = (_from(row, begin) for row in (chosen, rejected))
    fields = {field.name: getattr(first, field.name) for field in dataclasses.fields(Encoded)}
    return EncodedPair(**fields, rejected=second)


def _from(row: Encoded, begin: int) -> Encoded:
    labels = row.labels.copy()
    labels[:begin] = IGNORED
    return dataclasses.replace(row, labels=labels)
