"""The cross-entropy of answer tokens, which captioning, VQA and dialogue share; the head runs on those tokens only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lockadapt.data.batch import Batch, collate
from lockadapt.data.encode import IGNORED, Encoded
from lockadapt.data.pixels import ImageInputs
from lockadapt.models.fusions import image_outputs
from lockadapt.models.parts import stock
from lockadapt.objectives.base import Report


@dataclass(frozen=True)
class AnswerObjective:
    """What captioning, VQA and dialogue have in common; each adds its kind and its score. See `Objective`."""

    weight: float = 1.0
    ratio: float = 1.0
    answers: tuple[str, ...] | None = None
    max_new_tokens: int = 32

    def collate(self, items: Sequence[Encoded], images: ImageInputs, pad_id: int, name: str) -> Batch:
        """See `Objective.collate`."""
        return collate(items, images, pad_id, name)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, Report]:
        """See `Objective.loss`."""
        return answer_loss(model, batch)


def answer_loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, Report]:
    """Mean negative log-likelihood over the labelled tokens of a batch: what the stock class computes from `labels`.

    Args:
        model: a stock LLaVA or FastVLM, possibly wrapped by PEFT or DDP.
        batch: see `lockadapt.data.batch.Batch`.

    Returns:
        The loss (scalar, float32, with graph); a report with `tokens` and `token_accuracy`.
    """
    labels = batch["labels"]
    targets = labels[:, 1:]
    learned = targets != IGNORED
    predicting = torch.zeros_like(labels, dtype=torch.bool)
    predicting[:, :-1] = learned
    logits = model(**model_inputs(model, batch), logits_to_keep=predicting, use_cache=False).logits.float()
    answers = targets[learned]
    loss = F.cross_entropy(logits, answers)
    accuracy = (logits.detach().argmax(-1) == answers).float().mean()
    return loss, {"tokens": torch.tensor(float(len(answers))), "token_accuracy": accuracy}


def model_inputs(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """What the stock forward is called with: tokens and mask, and images as pixels or as remembered features."""
    inputs: dict[str, Any] = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if "image_features" in batch:
        inputs["mm_encoder_outputs"] = image_outputs(
            stock(model), batch["image_features"], batch.get("image_scales")
        )
    elif "pixel_values" in batch:
        inputs["pixel_values"] = batch["pixel_values"]
    return inputs
