"""Keys of rows whose images are looked at by cross-attention: which token sees which tile (Mllama)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import MllamaProcessor
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

MASK = "cross_attention_mask"


def row_key_names(processor: Any) -> tuple[str, ...]:
    """Keys of a processor that the tokens and the images of a row decide together."""
    return (MASK,) if isinstance(processor, MllamaProcessor) else ()


def row_keys(processor: Any, input_ids: Tensor, keys: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Makes these keys as the stock processor does, by its own functions.

    Args:
        processor: a stock processor.
        input_ids: int64 (rows, tokens), padded on either side.
        keys: of the images, a row of each for each row of tokens.

    Returns:
        `cross_attention_mask`, int64 (rows, tokens, images, tiles); nothing without images, or of processors
        that have no such key.

    Raises:
        ValueError: rows of tokens and of images differ in number.
    """
    if not row_key_names(processor) or not keys:
        return {}
    tiles = keys["aspect_ratio_mask"]
    if len(tiles) != len(input_ids):
        raise ValueError("images are looked at by a mask of the row: each row needs its own, and one sample")
    spans = [get_cross_attention_token_mask(row, processor.image_token_id) for row in input_ids.tolist()]
    mask = convert_sparse_cross_attention_mask_to_dense(
        spans,
        num_tiles=tiles.sum(-1).tolist(),
        max_num_tiles=tiles.shape[-1],
        length=input_ids.shape[1],
    )
    return {MASK: torch.from_numpy(mask)}
