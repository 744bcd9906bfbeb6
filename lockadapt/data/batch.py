"""Collates encoded samples into a batch: the model's inputs, and which logits are scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lockadapt.architectures.kept import RaggedFeatures
from lockadapt.data.encode import IGNORED, Encoded
from lockadapt.data.pack import pack
from lockadapt.data.pixels import ImageInputs, image_part

Batch = dict[str, Any]
"""What an objective gets; packed and plain batches look the same to it.

- `objective`: its name.
- `input_ids` int64 (rows, tokens); `attention_mask` int64 (rows, tokens), or, packed, bool (rows, 1, tokens,
  tokens) with `position_ids` int64 (rows, tokens), each token's place in its sample, and `trees` and `stems`,
  see `lockadapt.data.pack.Packed`.
- `pixel_values` (images, 3, side, side) or `image_features` (images, tokens, channels; `RaggedFeatures` where
  images have different numbers of tokens), where there are images, with `image_rows` int64 (images,), the
  row of each; or, of processors that are asked for every row, all their keys; `processor_keys` and
  `token_keys` are the names of those that say something of images and of tokens.
- `predicting` bool (rows, tokens): the positions whose logits are needed.
- `decoder_labels` int64 (rows, answer tokens), where an encoder reads the prompts and a decoder writes the
  answers: IGNORED behind an answer. `predicting` then says of those tokens which are scored, each at its own
  position, and `input_ids` are the prompts alone.
- `logit_index`, `targets`, `owners` int64 (labels,): for every learned token which of those logits (in
  reading order) predicts it, its id, and the sample that it belongs to.
"""


def collate(
    items: Sequence[Encoded],
    images: ImageInputs,
    pad_id: int,
    objective: str,
    max_row_tokens: int | None = None,
) -> Batch:
    """Collate samples into a batch.

    Args:
        items: encoded samples.
        images: turns the samples' images into the image part of the batch.
        pad_id: fills the end of rows.
        objective: name of the objective, kept in the batch.
        max_row_tokens: None: one row a sample, padded to the longest. Else samples about the same images
            share a row, see `lockadapt.data.pack.pack`.

    Returns:
        The batch, on the CPU; shapes and dtypes as in the module's description.
    """
    if items and items[0].prompt is not None:
        batch = _apart(items, pad_id)
    else:
        batch = _plain(items, pad_id) if max_row_tokens is None else _packed(items, pad_id, max_row_tokens)
    shown, rows = batch.pop("images"), batch.pop("tree_rows", None)
    part = image_part(images, shown, batch["input_ids"], rows, batch["predicting"])
    return {"objective": objective, **batch, **part}


def _packed(items: Sequence[Encoded], pad_id: int, max_row_tokens: int) -> Batch:
    rows = pack(items, pad_id, max_row_tokens)
    names = (
        "input_ids",
        "position_ids",
        "attention_mask",
        "predicting",
        "logit_index",
        "targets",
        "owners",
        "trees",
        "stems",
    )
    tensors = {name: torch.from_numpy(getattr(rows, name)) for name in names}
    return {**tensors, "images": rows.images, "tree_rows": rows.tree_rows}


def _plain(items: Sequence[Encoded], pad_id: int) -> Batch:
    """Padding is told by the attention mask alone: pad, unk and eos may share an id."""
    longest = max(len(item.input_ids) for item in items)
    input_ids = np.full((len(items), longest), pad_id, np.int64)
    labels = np.full((len(items), longest), IGNORED, np.int64)
    attention_mask = np.zeros((len(items), longest), np.int64)
    for row, item in enumerate(items):
        length = len(item.input_ids)
        input_ids[row, :length], labels[row, :length], attention_mask[row, :length] = (
            item.input_ids,
            item.labels,
            1,
        )
    predicting = np.zeros((len(items), longest), bool)
    predicting[:, :-1] = labels[:, 1:] != IGNORED
    owners, positions = np.nonzero(predicting)
    arrays = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "predicting": predicting,
        "logit_index": np.arange(len(owners)),
        "targets": labels[owners, positions + 1],
        "owners": owners,
    }
    return {
        **{name: torch.from_numpy(array) for name, array in arrays.items()},
        "images": [item.images for item in items],
    }


def _apart(items: Sequence[Encoded], pad_id: int) -> Batch:
    """Prompts for an encoder, answers for a decoder, each padded by itself."""
    lengths = [item.prompt or 0 for item in items]
    width, answers = max(lengths), max(len(item.labels) - n for item, n in zip(items, lengths, strict=True))
    input_ids = np.full((len(items), width), pad_id, np.int64)
    attention_mask = np.zeros((len(items), width), np.int64)
    labels = np.full((len(items), answers), IGNORED, np.int64)
    for row, (item, length) in enumerate(zip(items, lengths, strict=True)):
        input_ids[row, :length], attention_mask[row, :length] = item.input_ids[:length], 1
        labels[row, : len(item.labels) - length] = item.labels[length:]
    predicting = labels != IGNORED
    owners, positions = np.nonzero(predicting)
    arrays = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "decoder_labels": labels,
        "predicting": predicting,
        "logit_index": np.arange(len(owners)),
        "targets": labels[owners, positions],
        "owners": owners,
    }
    return {
        **{name: torch.from_numpy(array) for name, array in arrays.items()},
        "images": [item.images for item in items],
    }


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device."""
    moved = (torch.Tensor, RaggedFeatures)
    return {key: value.to(device) if isinstance(value, moved) else value for key, value in batch.items()}


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts for `generate`: ids and attention mask, int64 (batch, tokens), padded on the left."""
    longest = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), longest), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        input_ids[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        attention_mask[row, longest - len(prompt) :] = 1
    return input_ids, attention_mask
