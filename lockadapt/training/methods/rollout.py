"""Answers to be rewarded: several to a prompt, whose image and text are read once for all of them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from lockadapt.architectures import architecture_of
from lockadapt.architectures.base import unwrap_model
from lockadapt.data.batch import left_padded, on_device
from lockadapt.data.encode import IGNORED, Encoded, Encoder
from lockadapt.data.pixels import ImageInputs, image_part
from lockadapt.data.sample import Sample
from lockadapt.models.quiet import quiet
from lockadapt.objectives.answer_tokens import answer_start, model_inputs, writer_of
from lockadapt.tuning.training_autocast import training_autocast

SAME, SAME_IN_16_BITS = 1e-4, 3e-2
"""Largest relative L2 differences of logits that are called equal: of float32, and of 16 bits."""


def prompt_of(encoder: Encoder, sample: Sample) -> Encoded:
    """Everything before a sample's last answer, with nothing to learn.

    Args:
        encoder: of the model's processor.
        sample: whose last turn is the answer.

    Returns:
        The row.
    """
    ids = np.asarray(encoder.prompt_ids(sample), np.int32)
    seen = np.flatnonzero(ids == encoder.image_token_id)
    return Encoded(
        ids,
        np.full(len(ids), IGNORED, np.int32),
        sample.images,
        sample,
        int(seen[-1]) + 1 if len(seen) else 0,
    )


def parts_alike(model: nn.Module, prompts: Sequence[Encoded], size: int) -> Iterator[list[int]]:
    """Numbers of prompts that can stand in a batch, up to `size`: of some classes only equally long ones.

    Args:
        model: a Transformers model, possibly wrapped.
        prompts: in any order.
        size: of a batch.

    Yields:
        Positions in `prompts`.
    """
    beside = architecture_of(model).beside
    padded = beside is None or beside.left_padding
    kinds: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        kinds.setdefault(0 if padded else len(prompt.input_ids), []).append(number)
    for numbers in kinds.values():
        for start in range(0, len(numbers), size):
            yield numbers[start : start + size]


@contextlib.contextmanager
def writing(model: nn.Module, settings: Mapping[str, Any]) -> Iterator[None]:
    """Makes settings the model's own for a while, which would fill in what they leave out.

    Args:
        model: a Transformers model, possibly wrapped.
        settings: fields of Transformers' `GenerationConfig`.
    """
    base: Any = unwrap_model(model)
    held = base.generation_config
    base.generation_config = copy.deepcopy(held)
    try:
        for name, value in settings.items():
            setattr(base.generation_config, name, value)
        yield
    finally:
        base.generation_config = held


class Rollout:
    """Continues prompts of one model.

    Args:
        model: a Transformers model, possibly wrapped by PEFT.
        images: give the prompts' images.
        tokenizer: the model's.
    """

    def __init__(self, model: nn.Module, images: ImageInputs, tokenizer: Any) -> None:
        self.model, self.images, self.tokenizer = model, images, tokenizer
        self.shares: bool | None = None
        """Whether prompts are read once; None: not tried yet."""
        self.problem: str | None = None
        """Why they are not."""

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Encoded], count: int, config: Any) -> list[list[int]]:
        """Gives `count` continuations of each prompt, side by side.

        Args:
            prompts: distinct ones.
            count: of continuations.
            config: Transformers' `GenerationConfig`.

        Returns:
            Token ids up to the first end token, that included.
        """
        self.model.eval()
        if self.shares is None and count > 1:
            self.problem = self._try(prompts)
            self.shares = self.problem is None
        made: dict[int, list[list[int]]] = {}
        for part in parts_alike(self.model, prompts, len(prompts)):
            batch = [prompts[number] for number in part]
            if count > 1 and self.shares:
                inputs = self._read_once(batch, count)
            else:
                inputs = self._whole([prompt for prompt in batch for _ in range(count)])
            rows = self._until_end(*self._generate(inputs, generation_config=config), config)
            for position, number in enumerate(part):
                made[number] = rows[position * count : (position + 1) * count]
        return [row for number in range(len(prompts)) for row in made[number]]

    def _try(self, prompts: Sequence[Encoded]) -> str | None:
        """Why answers behind a shared reading differ from those to prompts alone; None: they do not.

        Measured on the logits of the first two tokens of two answers to each of two prompts.
        """
        [numbers, *_] = parts_alike(self.model, prompts, 2)
        tried = [prompts[number] for number in numbers]
        greedy = {
            **{"max_new_tokens": 2, "do_sample": False, "return_dict_in_generate": True},
            "output_logits": True,
        }
        try:
            shared, _ = self._generate(self._read_once(tried, 2), **greedy)
            alone, _ = self._generate(self._whole([prompt for prompt in tried for _ in range(2)]), **greedy)
        # Classes that were not written for it fail in as many ways as there are.
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        limit = SAME if alone.logits[0].dtype == torch.float32 else SAME_IN_16_BITS
        for step, (own, reference) in enumerate(zip(shared.logits, alone.logits, strict=True), 1):
            change = float(((own - reference).norm(dim=-1) / reference.norm(dim=-1)).max())
            if not change <= limit:
                return f"the logits of an answer's token {step} differ by {change:.1e}, read alone"
            if not torch.equal(own.argmax(-1), reference.argmax(-1)):
                break  # the next token follows another one
        return None

    def _whole(self, prompts: Sequence[Encoded]) -> dict[str, Any]:
        """What `generate` takes of prompts that are read each by itself, and `prompt_length`."""
        ids, mask = left_padded([p.input_ids.tolist() for p in prompts], self.tokenizer.pad_token_id)
        shown = image_part(self.images, [prompt.images for prompt in prompts], ids)
        device = next(self.model.parameters()).device
        inputs = on_device({"input_ids": ids, "attention_mask": mask, **shown}, device)
        with training_autocast(self.model):
            given = model_inputs(self.model, inputs)
        return {**given, "prompt_length": answer_start(self.model, ids.shape[1])}

    def _read_once(self, prompts: Sequence[Encoded], count: int) -> dict[str, Any]:
        """What `generate` takes of prompts that are read already, all but their last tokens."""
        inputs = self._whole(prompts)
        read, _ = self._generate(inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True)
        cache = read.cache
        cache.crop(-1)
        cache.batch_repeat_interleave(count)
        for module in self.model.modules():
            # How far a row's positions lie from its tokens, which the class keeps beside the cache.
            if isinstance(deltas := getattr(module, "rope_deltas", None), torch.Tensor):
                module.rope_deltas = deltas.repeat_interleave(count, 0)  # type: ignore[assignment]
        ids, mask = (inputs[name].repeat_interleave(count, 0) for name in ("input_ids", "attention_mask"))
        return {"input_ids": ids, "attention_mask": mask, "cache": cache, "prompt_length": ids.shape[1]}

    def _generate(self, inputs: dict[str, Any], **settings: Any) -> tuple[Any, int]:
        """What `generate` returns, and where its answers begin."""
        given = {name: value for name, value in inputs.items() if name != "prompt_length"}
        pad = {} if "generation_config" in settings else {"pad_token_id": self.tokenizer.pad_token_id}
        with training_autocast(self.model), quiet():
            writer, given = writer_of(self.model, given)
            return writer.generate(**given, **settings, **pad, use_cache=True), inputs["prompt_length"]

    @staticmethod
    def _until_end(made: torch.Tensor, begin: int, config: Any) -> list[list[int]]:
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        rows = []
        for row in made[:, begin:].tolist():
            end = next((number for number, token in enumerate(row) if token in ends), len(row))
            rows.append(row[: end + 1])
        return rows
