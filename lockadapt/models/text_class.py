"""Writes the LLM's own class into a stock config: servers and converters choose their LLM by it."""

from __future__ import annotations

from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING


def name_text_class(config: Any) -> None:
    """Fills in `text_config.architectures` where it is missing, in place.

    Transformers itself never reads it there and many checkpoints lack it; llama.cpp then takes every LLM for a Llama.
    """
    text = config.get_text_config()
    if text is config or text.architectures:
        return
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(text), None)
    if kind is not None:
        text.architectures = [(kind[0] if isinstance(kind, tuple) else kind).__name__]
