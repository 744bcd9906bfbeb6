"""The encoder of a model: how long its rows may be, and whether its prompts and answers are apart."""

from __future__ import annotations

from typing import Any

from torch import nn

from lockadapt.architectures import answers_apart
from lockadapt.architectures.blocks import context_length
from lockadapt.data.encode import Encoder


def model_encoder(
    model: nn.Module, processor: Any, max_length: int | None = None, allow_special_tokens: bool = False
) -> Encoder:
    """Makes the encoder whose rows a model is trained on and asked with.

    Args:
        model: a Transformers model, with weights or without, possibly wrapped by PEFT.
        processor: its own.
        max_length: the longest sample in tokens; None: the LLM's context.
        allow_special_tokens: see `Encoder`.

    Returns:
        The encoder.

    Raises:
        DataError: see `Encoder`.
    """
    longest = max_length or context_length(model)
    return Encoder(processor, longest, allow_special_tokens, answers_apart(model))
