"""What a stage does to the LLM's language: perplexity of texts without images, before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from lockadapt.tuning.locks import text_logits
from lockadapt.tuning.training_autocast import training_autocast


@torch.no_grad()
def text_perplexity(model: nn.Module, texts: Sequence[torch.Tensor]) -> float:
    """Perplexity of texts, each token but the first of each.

    Args:
        model: a Transformers model, possibly wrapped by PEFT.
        texts: token ids, int64 (tokens,) each.

    Returns:
        exp of the mean negative log-likelihood; nan without texts.
    """
    total, count = 0.0, 0
    with training_autocast(model):
        rows = text_logits(model, [text for text in texts if len(text) > 1])
    for text, logits in zip((text for text in texts if len(text) > 1), rows, strict=True):
        total += float(nn.functional.cross_entropy(logits[0, :-1].float(), text[1:].cpu(), reduction="sum"))
        count += len(text) - 1
    return math.exp(min(total / count, 700.0)) if count else math.nan
