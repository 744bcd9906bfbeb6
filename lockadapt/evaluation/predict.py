"""Answers of a model: generated greedily, or the likeliest of a closed list.

Each image is read once for all its questions.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from lockadapt import processes
from lockadapt.architectures import architecture_of
from lockadapt.data.batch import Batch, collate, on_device
from lockadapt.data.encode import IGNORED, Encoded, Encoder
from lockadapt.data.pack import groups
from lockadapt.data.pixels import ImageInputs
from lockadapt.data.sample import Sample, Turn
from lockadapt.errors import DataError
from lockadapt.evaluation.prefill import (
    generate_from_shared_prefix,
    prefill_problem,
    shares,
    stream_answer,
)
from lockadapt.objectives.answer_tokens import sample_losses
from lockadapt.planning.exactness import try_packing
from lockadapt.planning.packing import why_not_exact, why_not_shared, with_a_sibling

Progress = Callable[[int, int], None]
RANK_ROWS = 16
"""Texts (prompt and candidate) scored at a time, as a multiple of the batch size."""


@dataclass(frozen=True)
class SamplePredictor:
    """A model in eval mode with what it needs to answer.

    Attributes:
        model: a stock LLaVA or FastVLM, possibly wrapped by PEFT.
        encoder: of the model's processor.
        images: where pixels or features come from.
        batch_size: prompts at a time.
        max_row_tokens: longest row of prompts and candidates that share their beginnings; None: nothing is
            shared.
        note: told why nothing is shared, where that was asked for.
        beams: of generated answers (beam search); 1: greedy.
        dealt: whether all processes answer the same samples, each its share of the batches.
    """

    model: nn.Module
    encoder: Encoder
    images: ImageInputs
    batch_size: int = 64
    max_row_tokens: int | None = 2048
    note: Callable[[str], None] | None = None
    beams: int = 1
    dealt: bool = False

    @torch.no_grad()
    def generate(
        self, samples: Sequence[Sample], max_new_tokens: int, progress: Progress | None = None
    ) -> list[str]:
        """Answers each sample's last turn, in order, without special tokens and outer spaces."""
        self.model.eval()
        prompts = [self._prompt(sample) for sample in samples]
        # Prompts of one image side by side; all prompts of a batch have as many tokens up to their images'
        # end.
        order = [number for group in groups(prompts) for number in group]
        longest = max((len(prompt.input_ids) for prompt in prompts), default=0) + max_new_tokens
        share = self.max_row_tokens is not None and not self._explained(why_not_shared(self.model, longest))
        tried = not architecture_of(self.model).inputs.stock
        # What an existing class keeps beside the cache (offsets of positions) follows no beams.
        share = share and (tried or self.beams == 1)
        answers: dict[int, str] = {}
        alike = self._alike(prompts)
        order.sort(key=alike)
        parts = list(_parts(order, self.batch_size, alike))
        batches = ([prompts[number] for number in part] for part in parts)
        if share and not tried and (first := next(filter(shares, batches), None)):
            problem = prefill_problem(self.model, first, self.images, self.encoder.tokenizer)
            share = not self._explained(problem)
        for part in self._own(parts):
            batch = [prompts[number] for number in part]
            texts = generate_from_shared_prefix(
                self.model,
                batch,
                self.images,
                self.encoder.tokenizer,
                max_new_tokens,
                share=share,
                beams=self.beams,
            )
            answers.update(zip(part, texts, strict=True))
            if progress:
                progress(len(answers), len(samples))
        if self.dealt:
            gathered = processes.gather_bytes(json.dumps(list(answers.items())).encode())
            answers = {number: text for part in gathered for number, text in json.loads(part)}
        return [answers[i] for i in range(len(samples))]

    def stream(self, sample: Sample, max_new_tokens: int, streamer: Any) -> str:
        """Answers one sample's last turn as `generate` does, its tokens given to a streamer as they come."""
        self.model.eval()
        tokenizer = self.encoder.tokenizer
        prompt = self._prompt(sample)
        return stream_answer(self.model, prompt, self.images, tokenizer, max_new_tokens, streamer)

    @torch.no_grad()
    def rank(
        self, samples: Sequence[Sample], candidates: Sequence[str], progress: Progress | None = None
    ) -> list[str]:
        """Picks each last turn's candidate with the highest log-likelihood, end-of-turn token included."""
        scores = self.scores(samples, candidates, progress)
        return [candidates[choice] for choice in scores.argmax(-1).tolist()]

    @torch.no_grad()
    def scores(
        self, samples: Sequence[Sample], candidates: Sequence[str], progress: Progress | None = None
    ) -> torch.Tensor:
        """Log-likelihoods of candidates as answers to the last turn, float32 (samples, candidates).

        Prompts and candidates are packed: an image stands once for all its questions, a question once for all
        candidates.
        """
        self.model.eval()
        scores = torch.zeros(len(samples), len(candidates))
        if not samples:
            return scores
        tails = [self._tail(samples[0], candidate) for candidate in candidates]
        prompts = [self._prompt(sample) for sample in samples]
        order = [number for group in groups(prompts) for number in group]
        at_once = max(1, self.batch_size * RANK_ROWS // len(candidates))
        parts, done = list(_parts(order, at_once, lambda _: 0)), 0
        first = [_answered(prompts[number], tail) for number in parts[0] for tail in tails]
        max_row_tokens = self._exact_row_length(prompts, tails, first)
        for part in self._own(parts):
            items = [_answered(prompts[number], tail) for number in part for tail in tails]
            losses = sample_losses(self.model, self._batch(items, max_row_tokens), len(items))
            scores[part] = -losses.view(len(part), len(tails)).cpu()
            done += len(part)
            if progress:
                progress(done, len(samples))
        # Each score is one process's, and 0 on the others.
        return processes.add_up(scores) if self.dealt else scores

    def _own(self, parts: list[list[int]]) -> list[list[int]]:
        return processes.dealt(parts) if self.dealt else parts

    def _alike(self, prompts: Sequence[Encoded]) -> Callable[[int], int]:
        """What prompts of a batch have in common: the tokens up to their images' end, or all of their tokens.

        Some classes count padding among the positions when they generate: none of their rows is padded.
        """
        beside = architecture_of(self.model).beside
        if beside is not None and not beside.left_padding:
            return lambda number: len(prompts[number].input_ids)
        return lambda number: prompts[number].image_end

    def _exact_row_length(
        self, prompts: Sequence[Encoded], tails: Sequence[Sequence[int]], items: Sequence[Encoded]
    ) -> int | None:
        """The row length to pack to, or None where this LLM gives other scores when packed."""
        longest = max(len(prompt.input_ids) for prompt in prompts) + max(len(tail) for tail in tails)
        if self.max_row_tokens is None:
            return None
        problem = why_not_exact(self.model, longest)
        if problem is None:
            tried = with_a_sibling([*items[:2], items[-1]])
            problem = try_packing(self.model, tried, self._batch, self.max_row_tokens).problem
        return None if self._explained(problem) else self.max_row_tokens

    def _explained(self, problem: str | None) -> bool:
        """Whether there is a problem, which the user is then told."""
        if problem and self.note:
            self.note(
                f"each prompt is computed by itself, as sharing what is common cannot be exact: {problem}"
            )
        return problem is not None

    def _batch(self, items: Sequence[Encoded], max_row_tokens: int | None) -> Batch:
        device = next(self.model.parameters()).device
        batch = collate(items, self.images, self.encoder.tokenizer.pad_token_id, "scores", max_row_tokens)
        return on_device(batch, device)

    def _prompt(self, sample: Sample) -> Encoded:
        ids = np.asarray(self.encoder.prompt_ids(sample), np.int32)
        seen = np.flatnonzero(ids == self.encoder.image_token_id)
        end = int(seen[-1]) + 1 if len(seen) else 0
        prompt = len(ids) if self.encoder.apart else None
        return Encoded(ids, np.full(len(ids), IGNORED, np.int32), sample.images, sample, end, prompt)

    def _tail(self, sample: Sample, candidate: str) -> list[int]:
        """Token ids of a candidate answer with its end-of-turn token, as they follow the prompt."""
        turns = (*sample.turns[:-1], Turn("assistant", candidate))
        encoded = self.encoder.encode([dataclasses.replace(sample, turns=turns)]).encoded[-1]
        prompt = self.encoder.prompt_ids(sample)
        full = encoded.input_ids.tolist()
        if full[: len(prompt)] != prompt:
            raise DataError(
                f"prompt and answer {candidate!r} share a token, so answers cannot be ranked",
                where=sample.where,
                fix="use evaluation.method: generate, or a chat template that ends its prompt with a line "
                "break",
            )
        tail = full[len(prompt) :]
        last = max(i for i, label in enumerate(encoded.labels.tolist()) if label >= 0)
        return tail[: last + 1 - len(prompt)]


def _answered(prompt: Encoded, tail: Sequence[int]) -> Encoded:
    """A prompt with a candidate answer behind it, of which only the answer is scored."""
    answer = np.asarray(tail, np.int32)
    return dataclasses.replace(
        prompt,
        input_ids=np.concatenate([prompt.input_ids, answer]),
        labels=np.concatenate([prompt.labels, answer]),
    )


def _parts(order: Sequence[int], size: int, key: Callable[[int], Any]) -> Iterator[list[int]]:
    """Consecutive parts of up to `size` entries whose keys are equal."""
    for _, same in itertools.groupby(order, key):
        run = list(same)
        for start in range(0, len(run), size):
            yield run[start : start + size]
