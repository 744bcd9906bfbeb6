"""Generation that reads an image once: its key-value cache is shared by all questions about it."""

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
from lockadapt.errors import AssemblyError
from lockadapt.models.chat_template import without_thought
from lockadapt.models.quiet import quiet
from lockadapt.objectives.answer_tokens import answer_start, model_inputs, writer_of
from lockadapt.tuning.training_autocast import training_autocast

SAME, SAME_IN_16_BITS = 1e-4, 3e-2
"""Largest relative L2 differences of logits that are called equal: of float32, and of 16 bits."""


@torch.no_grad()
def generate_from_shared_prefix(
    model: nn.Module,
    prompts: Sequence[Encoded],
    images: ImageInputs,
    tokenizer: Any,
    max_new_tokens: int,
    *,
    share: bool = True,
    beams: int = 1,
) -> list[str]:
    """Continues prompts, without special tokens, a thought before the answer, and outer spaces.

    Args:
        model: a Transformers model, possibly wrapped by PEFT.
        prompts: all with the same `image_end`.
        images: give the prompts' images.
        tokenizer: the model's.
        max_new_tokens: of a continuation.
        share: whether everything up to `image_end` is read once for all prompts that have it in common.
        beams: of the beam search; 1: greedy.

    Returns:
        A continuation a prompt, in order.
    """
    if share and shares(prompts):
        inputs = _continued(model, prompts, images, tokenizer, beams)
    else:
        inputs = _whole(model, prompts, images, tokenizer)
    prompt = inputs.pop("prompt_length")
    made = _generate(model, inputs, tokenizer, max_new_tokens, beams=beams)
    return [
        without_thought(text) for text in tokenizer.batch_decode(made[:, prompt:], skip_special_tokens=True)
    ]


@torch.no_grad()
def stream_answer(
    model: nn.Module,
    prompt: Encoded,
    images: ImageInputs,
    tokenizer: Any,
    max_new_tokens: int,
    streamer: Any,
) -> str:
    """Continues one prompt greedily, and gives its tokens to a streamer as they come.

    Args:
        model: a Transformers model, possibly wrapped by PEFT, in eval mode.
        prompt: read whole.
        images: give the prompt's images.
        tokenizer: the model's.
        max_new_tokens: of the continuation.
        streamer: a Transformers `BaseStreamer`.

    Returns:
        What `generate_from_shared_prefix` would return.
    """
    inputs = _whole(model, [prompt], images, tokenizer)
    length = inputs.pop("prompt_length")
    made = _generate(model, inputs, tokenizer, max_new_tokens, streamer=streamer)
    return without_thought(tokenizer.decode(made[0, length:], skip_special_tokens=True))


def shares(prompts: Sequence[Encoded]) -> bool:
    """Whether prompts have something to share: texts without an image share nothing worth reading once."""
    end = prompts[0].image_end
    behind = all(len(prompt.input_ids) > end for prompt in prompts)
    return end > 0 and behind and len(groups(prompts)) < len(prompts)


@torch.no_grad()
def prefill_problem(
    model: nn.Module, prompts: Sequence[Encoded], images: ImageInputs, tokenizer: Any
) -> str | None:
    """Why answers that go on from a shared reading differ from answers to prompts alone; None: they do not.

    Measured on the logits of the first two tokens, for two prompts about one image and one about another.

    Args:
        model: a Transformers model, possibly wrapped by PEFT, in eval mode.
        prompts: a batch of which some share a prefix.
        images: give the prompts' images.
        tokenizer: the model's.

    Returns:
        The reason, or None.
    """
    largest = max(groups(prompts), key=len)
    others = [number for number in range(len(prompts)) if number not in largest]
    tried = [prompts[number] for number in (*largest[:2], *others[:1])]
    try:
        shared = _first_logits(model, _continued(model, tried, images, tokenizer), tokenizer)
        alone = [
            _first_logits(model, _whole(model, [prompt], images, tokenizer), tokenizer) for prompt in tried
        ]
    # Classes that were not written for it fail in as many ways as there are.
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    limit = SAME if shared[0].dtype == torch.float32 else SAME_IN_16_BITS
    for step, logits in enumerate(shared):
        reference = torch.cat([steps[step] for steps in alone])
        change = float(((logits - reference).norm(dim=-1) / reference.norm(dim=-1)).max())
        if not change <= limit:
            return f"the logits of an answer's token {step + 1} differ by {change:.1e}, read alone"
        if not torch.equal(logits.argmax(-1), reference.argmax(-1)):
            break  # the next token follows another one
    return None


def _whole(
    model: nn.Module, prompts: Sequence[Encoded], images: ImageInputs, tokenizer: Any
) -> dict[str, Any]:
    """What `generate` takes for prompts that are read each by itself, and `prompt_length`."""
    ids, mask = left_padded([prompt.input_ids.tolist() for prompt in prompts], tokenizer.pad_token_id)
    shown = image_part(images, [prompt.images for prompt in prompts], ids)
    inputs = on_device({"input_ids": ids, "attention_mask": mask, **shown}, next(model.parameters()).device)
    return {**model_inputs(model, inputs), "prompt_length": answer_start(model, ids.shape[1])}


def _continued(
    model: nn.Module, prompts: Sequence[Encoded], images: ImageInputs, tokenizer: Any, beams: int = 1
) -> dict[str, Any]:
    """What `generate` takes for prompts whose common beginnings are read once, and `prompt_length`.

    `generate` repeats ids and masks for its beams by itself, but not a cache that it is given.
    """
    device, end = next(model.parameters()).device, prompts[0].image_end
    same = groups(prompts)
    firsts = [prompts[group[0]] for group in same]
    owner = torch.empty(len(prompts), dtype=torch.long)
    for number, group in enumerate(same):
        owner[group] = number
    prefix = torch.from_numpy(np.stack([first.input_ids[:end] for first in firsts]).astype("int64"))
    shown = image_part(images, [first.images for first in firsts], prefix)
    inputs = on_device({"input_ids": prefix, "attention_mask": torch.ones_like(prefix), **shown}, device)
    with training_autocast(model):
        reader, given = writer_of(model, model_inputs(model, inputs))
        if "inputs_embeds" in given:
            del given["input_ids"]
        cache = reader(**given, use_cache=True, logits_to_keep=1).cache
    cache.batch_select_indices(owner.repeat_interleave(beams).to(device))
    for module in model.modules():
        # How far a row's positions lie from its tokens, which the class keeps beside the cache.
        if isinstance(deltas := getattr(module, "rope_deltas", None), torch.Tensor):
            module.rope_deltas = deltas[owner.to(deltas.device)]  # type: ignore[assignment]
    rest, mask = left_padded([prompt.input_ids[end:].tolist() for prompt in prompts], tokenizer.pad_token_id)
    ids = torch.cat([prefix[owner], rest], 1)
    mask = torch.cat([torch.ones_like(prefix)[owner], mask], 1)
    inputs = on_device({"input_ids": ids, "attention_mask": mask}, device)
    return {**inputs, "cache": cache, "prompt_length": ids.shape[1]}


def _first_logits(model: nn.Module, inputs: dict[str, Any], tokenizer: Any) -> tuple[torch.Tensor, ...]:
    """Logits of the first two tokens that are generated, (prompts, vocabulary) each."""
    del inputs["prompt_length"]
    return tuple(_generate(model, inputs, tokenizer, 2, with_logits=True).logits)


def _generate(
    model: nn.Module,
    inputs: dict[str, Any],
    tokenizer: Any,
    max_new_tokens: int,
    *,
    beams: int = 1,
    with_logits: bool = False,
    streamer: Any = None,
) -> Any:
    """Continues prompts: ids, prompts included; with logits, what `generate` returns with them."""
    # Janus sets a length of its own beside ours, and says at every call which one counts.
    with training_autocast(model), quiet():
        writer, given = writer_of(model, inputs)
        try:
            return writer.generate(
                **given,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=beams,
                pad_token_id=tokenizer.pad_token_id,
                use_cache=True,
                return_dict_in_generate=with_logits,
                output_logits=with_logits,
                streamer=streamer,
            )
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            if (blamed := _blamed(error, writer)) is None:
                raise
            raise blamed from error


def _blamed(error: Exception, writer: Any) -> AssemblyError | None:
    """What to say where `generate` fails: that the folder's settings may be why, if it has any."""
    settings = sorted(
        name for name in writer.generation_config.to_diff_dict() if not name.endswith(_NO_CAUSE)
    )
    if not settings:
        return None
    return AssemblyError(
        f"{type(writer).__name__} cannot write: {type(error).__name__}: {error}",
        where=f"generation_config.json ({', '.join(settings)})",
        fix="remove what is wrong among these settings from the model's folder",
    )


_NO_CAUSE = ("_token_id", "_version", "_from_model_config", "use_cache")
