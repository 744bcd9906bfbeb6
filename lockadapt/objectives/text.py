"""Plain text, without images: keeps the LLM's language in a mixed run, and measures whether it was kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from lockadapt.data.batch import Batch, on_device
from lockadapt.data.encode import IGNORED, Encoded, Encoder, EncodeReport
from lockadapt.data.pixels import Frozen
from lockadapt.data.sample import Sample
from lockadapt.errors import AssemblyError, NoLabelError
from lockadapt.objectives.answer_tokens import answer_loss
from lockadapt.objectives.base import EvaluationContext, Objective, Progress, Report, Row


@dataclass(frozen=True)
class PlainText(Objective):
    """Cross-entropy of every token but the first, as in the LLM's own pre-training; scored by perplexity."""

    kind: ClassVar[str] = "text"
    plannable: ClassVar[bool] = True

    @property
    def parts(self) -> tuple[str, ...]:
        """Nothing beside LoRA."""
        return ()

    @property
    def frozen(self) -> Frozen:
        """There are no images."""
        return "nothing"

    def encode(
        self, encoder: Encoder, samples: Sequence[Sample], progress: Progress | None = None
    ) -> EncodeReport:
        """Encodes without a chat template: as the tokenizer makes it of plain text, cut at `max_length`.

        Args:
            encoder: of the model's processor.
            samples: rows of text.
            progress: told (done, all).

        Returns:
            The encoded rows, and what became of the others.

        Raises:
            AssemblyError: the LLM is an encoder-decoder.
            NoLabelError: a text of fewer than two tokens.
        """
        if encoder.apart:
            raise AssemblyError(
                "plain text has no prompt for the encoder of this LLM to read",
                fix="leave the text objective out, or use a decoder LLM",
            )
        report = EncodeReport()
        for number, sample in enumerate(samples, 1):
            ids = np.asarray(encoder.text_ids(sample.answer, sample.where, special=True), np.int32)
            if len(ids) > encoder.max_length:
                report.cut.append(sample.where)
                ids = ids[: encoder.max_length]
            if len(ids) < 2:
                raise NoLabelError("the text has no token to predict", where=sample.where, fix="remove it")
            labels = ids.copy()
            labels[0] = IGNORED
            report.encoded.append(Encoded(ids, labels, (), sample))
            if progress:
                progress(number, len(samples))
        return report

    def loss(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, Report]:
        """See `answer_loss`."""
        return answer_loss(model, batch)

    def evaluate(
        self, context: EvaluationContext, samples: Sequence[Sample]
    ) -> tuple[dict[str, Any], list[Row]]:
        """Scores `{"perplexity", "perplexity_before", "n"}`: with the adapter and, if any, without it."""
        items = self.encode(context.encoder, samples).encoded
        scores: dict[str, Any] = {"perplexity": self._perplexity(context, items), "n": len(items)}
        if hasattr(context.model, "disable_adapter"):
            disabled: Any = context.model.disable_adapter
            with disabled():
                scores["perplexity_before"] = self._perplexity(context, items)
        return scores, []

    @torch.no_grad()
    def _perplexity(self, context: EvaluationContext, items: Sequence[Encoded]) -> float:
        """exp of the mean negative log-likelihood over all tokens."""
        context.model.eval()
        device, pad = next(context.model.parameters()).device, context.encoder.tokenizer.pad_token_id
        total = tokens = 0.0
        for start in range(0, len(items), context.batch_size):
            part = items[start : start + context.batch_size]
            batch = on_device(self.collate(part, context.images, pad, self.kind), device)
            loss, report = self.loss(context.model, batch)
            total, tokens = total + float(loss * report["tokens"]), tokens + float(report["tokens"])
        return math.exp(min(total / tokens, 700.0))
