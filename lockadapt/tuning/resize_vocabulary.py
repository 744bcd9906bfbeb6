"""Gives an existing stock VLM the vocabulary rows of query tokens, in a folder of the run's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lockadapt.architectures.load import load_model
from lockadapt.files import new_folder
from lockadapt.models.embeddings import widen_vocabulary
from lockadapt.models.query_tokens import add_query_tokens
from lockadapt.models.quiet import quiet


def add_rows(model: Any, processor: Any, count: int) -> None:
    """Makes `count` query tokens known to a model on the CPU and its processor.

    In place; rows that were there stay.
    """
    if not count:
        return
    add_query_tokens(processor.tokenizer, count)
    with quiet():
        widen_vocabulary(model, processor.tokenizer)


def with_query_tokens(vlm: str | Path, output: Path, count: int, dtype: torch.dtype) -> None:
    """Writes a copy of a stock folder with `count` query tokens; whole or not at all.

    Args:
        vlm: the stock folder or Hub id.
        output: folder to write.
        count: of query tokens.
        dtype: that weights are loaded and written in.

    Raises:
        LockadaptError: as `load_model`, or the folder cannot be written.
    """
    model, processor = load_model(vlm, dtype)
    add_rows(model, processor, count)
    with new_folder(output, what="adding query tokens") as folder, quiet():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
