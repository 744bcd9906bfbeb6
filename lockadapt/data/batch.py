"""Encoded samples -> a batch: right-padded token tensors, and the images in reading order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lockadapt.data.encode import IGNORED, Encoded
from lockadapt.data.pixels import ImageInputs

Batch = dict[str, Any]
"""`objective` (its name), `input_ids`, `attention_mask`, `labels` int64 (batch, tokens), and, where there are images,
`pixel_values` (images, 3, side, side) or `image_features` (images, tokens, channels)."""


def collate(items: Sequence[Encoded], images: ImageInputs, pad_id: int, objective: str) -> Batch:
    """Pads to the longest sample. Padding is told by the attention mask alone: pad, unk and eos may share an id."""
    longest = max(len(item.input_ids) for item in items)
    input_ids = torch.full((len(items), longest), pad_id, dtype=torch.long)
    labels = torch.full((len(items), longest), IGNORED, dtype=torch.long)
    attention_mask = torch.zeros((len(items), longest), dtype=torch.long)
    for row, item in enumerate(items):
        length = len(item.input_ids)
        input_ids[row, :length] = torch.from_numpy(item.input_ids.astype("int64"))
        labels[row, :length] = torch.from_numpy(item.labels.astype("int64"))
        attention_mask[row, :length] = 1
    batch: Batch = {
        "objective": objective,
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
    }
    batch.update(images([image for item in items for image in item.images]))
    return batch


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts for `generate`: ids and attention mask, int64 (batch, tokens), padded on the left."""
    longest = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), longest), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        input_ids[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        attention_mask[row, longest - len(prompt) :] = 1
    return input_ids, attention_mask
