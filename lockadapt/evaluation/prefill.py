"""Greedy generation that reads an image once: its key-value cache is shared by all questions about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from lockadapt.data.batch import left_padded, on_device
from lockadapt.data.encode import Encoded
from lockadapt.data.pack import groups
from lockadapt.data.pixels import ImageInputs, image_part
from lockadapt.models.chat_template import without_thought
from lockadapt.models.quiet import quiet
from lockadapt.objectives.answer_tokens import model_inputs, writer_of
from lockadapt.tuning.training_autocast import training_autocast


@torch.no_grad()
def generate_from_shared_prefix(
    model: nn.Module,
    prompts: Sequence[Encoded],
    images: ImageInputs,
    tokenizer: Any,
    max_new_tokens: int,
    share: bool = True,
) -> list[str]:
    """Continues prompts greedily, without special tokens, a thought before the answer, and outer spaces.

    Args:
        model: a Transformers model, possibly wrapped by PEFT.
        prompts: all with the same `image_end`.
        images: give the prompts' images.
        tokenizer: the model's.
        max_new_tokens: of a continuation.
        share: whether everything up to `image_end` is read once for all prompts that have it in common.

    Returns:
        A continuation a prompt, in order.
    """
    device = next(model.parameters()).device
    same, end = groups(prompts), prompts[0].image_end
    # Texts without an image share nothing that would be read once.
    if (
        not share
        or not end
        or len(same) == len(prompts)
        or any(len(prompt.input_ids) == end for prompt in prompts)
    ):
        ids, mask = left_padded([prompt.input_ids.tolist() for prompt in prompts], tokenizer.pad_token_id)
        shown = image_part(images, [prompt.images for prompt in prompts], ids)
        inputs = on_device({"input_ids": ids, "attention_mask": mask, **shown}, device)
        return _generate(model, model_inputs(model, inputs), ids.shape[1], tokenizer, max_new_tokens)
    firsts = [prompts[group[0]] for group in same]
    owner = torch.empty(len(prompts), dtype=torch.long)
    for number, group in enumerate(same):
        owner[group] = number
    prefix = torch.from_numpy(np.stack([first.input_ids[:end] for first in firsts]).astype("int64"))
    shown = images([image for first in firsts for image in first.images])
    inputs = on_device({"input_ids": prefix, "attention_mask": torch.ones_like(prefix), **shown}, device)
    with training_autocast(model):
        reader, given = writer_of(model, model_inputs(model, inputs))
        if "inputs_embeds" in given:
            del given["input_ids"]
        cache = reader(**given, use_cache=True, logits_to_keep=1).cache
    cache.batch_select_indices(owner.to(device))
    rest, mask = left_padded([prompt.input_ids[end:].tolist() for prompt in prompts], tokenizer.pad_token_id)
    ids = torch.cat([prefix[owner], rest], 1)
    mask = torch.cat([torch.ones_like(prefix)[owner], mask], 1)
    inputs = on_device({"input_ids": ids, "attention_mask": mask}, device)
    return _generate(model, {**inputs, "cache": cache}, ids.shape[1], tokenizer, max_new_tokens)


def _generate(
    model: nn.Module, inputs: dict[str, Any], prompt: int, tokenizer: Any, max_new_tokens: int
) -> list[str]:
    """Continues prompts of so many tokens, padding included."""
    # Janus sets a length of its own beside ours, and says at every call which one counts.
    with training_autocast(model), quiet():
        writer, given = writer_of(model, inputs)
        made = writer.generate(
            **given,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=tokenizer.pad_token_id,
            use_cache=True,
        )
    new = made[:, prompt:]
    return [without_thought(text) for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
