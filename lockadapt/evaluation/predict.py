"""Answers of a model: generated greedily, or the likeliest of a closed list, images from pixels or remembered features."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lockadapt.data.batch import left_padded
from lockadapt.data.encode import Encoder
from lockadapt.data.pixels import ImageInputs
from lockadapt.data.sample import Sample, Turn
from lockadapt.errors import DataError
from lockadapt.objectives.answer_tokens import model_inputs

Progress = Callable[[int, int], None]
RANK_ROWS = 8
"""Candidate rows scored at a time, as a multiple of the batch size."""


@dataclass(frozen=True)
class Predictor:
    """A model in eval mode with what it needs to answer.

    Attributes:
        model: a stock LLaVA or FastVLM, possibly wrapped by PEFT.
        encoder: of the model's processor.
        images: where pixels or features come from.
        batch_size: prompts at a time.
    """

    model: nn.Module
    encoder: Encoder
    images: ImageInputs
    batch_size: int = 64

    @torch.no_grad()
    def generate(
        self, samples: Sequence[Sample], max_new_tokens: int, progress: Progress | None = None
    ) -> list[str]:
        """Greedy answers to the last turn of each sample, in order, without special tokens and outer spaces."""
        self.model.eval()
        tokenizer = self.encoder.tokenizer
        answers: dict[int, str] = {}
        for part, inputs in self._batches(samples, self.batch_size):
            produced = self.model.generate(  # type: ignore[operator]
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=tokenizer.pad_token_id,
                use_cache=True,
            )
            new = produced[:, inputs["input_ids"].shape[1] :]
            for index, text in zip(part, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                answers[index] = text.strip()
            if progress:
                progress(len(answers), len(samples))
        return [answers[i] for i in range(len(samples))]

    @torch.no_grad()
    def rank(
        self, samples: Sequence[Sample], candidates: Sequence[str], progress: Progress | None = None
    ) -> list[str]:
        """The candidate with the highest log-likelihood, end-of-turn token included, for the last turn of each sample.

        The prompt runs once; all candidates continue from its key-value cache.
        """
        self.model.eval()
        if not samples:
            return []
        tails = [self._tail(samples[0], candidate) for candidate in candidates]
        prompts = max(1, self.batch_size * RANK_ROWS // len(candidates))
        best: dict[int, str] = {}
        for part, inputs in self._batches(samples, prompts):
            scores = self._scores(inputs, tails)
            for index, choice in zip(part, scores.argmax(-1).tolist(), strict=True):
                best[index] = candidates[choice]
            if progress:
                progress(len(best), len(samples))
        return [best[i] for i in range(len(samples))]

    def _batches(self, samples: Sequence[Sample], size: int) -> Any:
        device = next(self.model.parameters()).device
        prompts = [self.encoder.prompt_ids(sample) for sample in samples]
        order = sorted(range(len(samples)), key=lambda i: len(prompts[i]))
        for start in range(0, len(order), size):
            part = order[start : start + size]
            ids, mask = left_padded([prompts[i] for i in part], self.encoder.tokenizer.pad_token_id)
            batch = {"input_ids": ids, "attention_mask": mask}
            batch.update(self.images([image for i in part for image in samples[i].images]))
            moved = {key: value.to(device) for key, value in batch.items()}
            yield part, model_inputs(self.model, moved)

    def _tail(self, sample: Sample, candidate: str) -> list[int]:
        """Token ids of a candidate answer with its end-of-turn token, as they follow the prompt."""
        turns = (*sample.turns[:-1], Turn("assistant", candidate))
        encoded = self.encoder.encode([dataclasses.replace(sample, turns=turns)]).encoded[0]
        prompt = self.encoder.prompt_ids(sample)
        full = encoded.input_ids.tolist()
        if full[: len(prompt)] != prompt:
            raise DataError(
                f"prompt and answer {candidate!r} share a token, so answers cannot be ranked",
                where=sample.where,
                fix="use evaluation.method: generate, or a chat template that ends its prompt with a line break",
            )
        tail = full[len(prompt) :]
        last = max(i for i, label in enumerate(encoded.labels.tolist()) if label >= 0)
        return tail[: last + 1 - len(prompt)]

    def _scores(self, inputs: dict[str, Any], tails: Sequence[Sequence[int]]) -> torch.Tensor:
        """Log-likelihoods (prompts, candidates) in float32."""
        mask = inputs["attention_mask"]
        device, prompts, count = mask.device, len(mask), len(tails)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        out = self.model(**inputs, position_ids=positions, use_cache=True, logits_to_keep=1)
        first = out.logits[:, -1].float().log_softmax(-1)
        longest = max(len(tail) for tail in tails)
        ids = torch.zeros((count, longest), dtype=torch.long, device=device)
        real = torch.zeros((count, longest), dtype=torch.bool, device=device)
        for row, tail in enumerate(tails):
            ids[row, : len(tail)] = torch.tensor(list(tail), device=device)
            real[row, : len(tail)] = True
        scores = first[:, ids[:, 0]]
        if longest == 1:
            return scores
        cache = out.past_key_values
        cache.batch_repeat_interleave(count)
        following = self.model(
            input_ids=ids[:, :-1].repeat(prompts, 1),
            attention_mask=torch.cat(
                [mask.repeat_interleave(count, 0), real[:, :-1].long().repeat(prompts, 1)], dim=1
            ),
            position_ids=mask.sum(-1, keepdim=True).repeat_interleave(count, 0)
            + torch.arange(longest - 1, device=device),
            past_key_values=cache,
            use_cache=True,
        ).logits.float()
        targets = ids[:, 1:].repeat(prompts, 1)
        tokens = following.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        rest = (tokens * real[:, 1:].repeat(prompts, 1)).sum(-1)
        return scores + rest.view(prompts, count)
