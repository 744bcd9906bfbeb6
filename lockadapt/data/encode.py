"""Turns a Sample into token ids and labels: one tokenisation of the whole text, labels on the answers only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from lockadapt.data.sample import ImageRef, Sample
from lockadapt.errors import DataError, NoLabelError

IGNORED = -100
"""Label of a position that is not learned (PyTorch's `cross_entropy` default)."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """A sample as arrays of equal length.

    Attributes:
        input_ids, labels: int32 (tokens,); `labels` is IGNORED off the answers.
        images: one entry an image span, in order.
        sample: what it was made from.
        image_end: the place behind the last image token, 0 without images.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    images: tuple[ImageRef, ...]
    sample: Sample
    image_end: int = 0


@dataclass
class EncodeReport:
    """What encoding a set of samples did: what was kept, cut and dropped, in samples and in tokens."""

    encoded: list[Encoded] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    merged_boundaries: list[str] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """All tokens, image tokens among them."""
        return sum(len(item.input_ids) for item in self.encoded)

    @property
    def label_tokens(self) -> int:
        """Tokens that are learned."""
        return sum(int((item.labels != IGNORED).sum()) for item in self.encoded)


class Encoder:
    """Encodes samples for one processor.

    Args:
        processor: a stock processor with `tokenizer` (fast), `image_processor`, `image_token` and a chat template; or
            one that keeps images and texts apart (no `image_token`), whose samples are no conversations.
        max_length: the longest sample in tokens, images included; text behind it is cut.

    Raises:
        DataError: the tokenizer is not a fast one (no offsets), or there is no chat template.
    """

    def __init__(self, processor: Any, max_length: int) -> None:
        self.processor, self.tokenizer, self.max_length = processor, processor.tokenizer, max_length
        if not self.tokenizer.is_fast:
            raise DataError(
                "the tokenizer gives no character offsets", fix="use a fast tokenizer (tokenizer.json)"
            )
        self.image_token: str = getattr(processor, "image_token", "")
        self.image_token_id, self.image_tokens, self.image_text = -1, 0, ""
        self.template: str | None = processor.chat_template or self.tokenizer.chat_template
        if not self.image_token:
            return
        self.image_token_id = int(self.tokenizer.convert_tokens_to_ids(self.image_token))
        if not self.template:
            raise DataError(
                "the processor has no chat template", fix="assemble with lockadapt, which writes one"
            )
        self.image_tokens = count_image_tokens(processor)
        # Janus puts a token before an image's tokens and one behind them.
        start, end = (getattr(processor, f"image_{side}_token", None) or "" for side in ("start", "end"))
        self.image_text = start + self.image_token * self.image_tokens + end

    def render(self, sample: Sample, turns: int | None = None, *, prompt: bool = False) -> str:
        """The first `turns` turns (default all) as text; `prompt` adds what asks the assistant to speak."""
        messages = sample.messages()[:turns]
        return self.tokenizer.apply_chat_template(
            messages, chat_template=self.template, tokenize=False, add_generation_prompt=prompt
        )

    def expand(self, text: str) -> str:
        """Each image marker repeated as often as the tower gives features, framed as the processor frames it."""
        return text.replace(self.image_token, self.image_text)

    def prompt_ids(self, sample: Sample) -> list[int]:
        """Token ids of everything before the last answer, as `generate` needs them."""
        last = max(i for i, turn in enumerate(sample.turns) if turn.role == "assistant")
        text = self.expand(self.render(sample, last, prompt=True))
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) >= self.max_length:
            raise DataError(
                f"the prompt has {len(ids)} tokens, the limit is {self.max_length}", where=sample.where
            )
        return ids

    def encode(
        self, samples: Sequence[Sample], progress: Callable[[int, int], None] | None = None
    ) -> EncodeReport:
        """Encodes samples in order; cut and dropped ones are counted in the report by row.

        Raises:
            NoLabelError: a sample has nothing to learn from though nothing was cut.
            DataError: the image marker stands in a text, or the chat template hides an answer.
        """
        report, chunk = EncodeReport(), 512
        for start in range(0, len(samples), chunk):
            part = samples[start : start + chunk]
            texts, spans = [], []
            for sample in part:
                text, answers = self._locate(sample)
                texts.append(text)
                spans.append(answers)
            tokens = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
            for sample, answers, ids, offsets in zip(
                part, spans, tokens["input_ids"], tokens["offset_mapping"], strict=True
            ):
                self._add(report, sample, answers, np.asarray(ids, np.int32), np.asarray(offsets, np.int32))
            if progress:
                progress(start + len(part), len(samples))
        return report

    def _locate(self, sample: Sample) -> tuple[str, list[tuple[int, int]]]:
        """The expanded text and the character spans of the answers, end-of-turn marker included."""
        for turn in sample.turns:
            if self.image_token in turn.text:
                raise DataError(
                    f"the text holds the image marker {self.image_token!r}",
                    where=sample.where,
                    fix="remove it",
                )
        text = self.render(sample)
        if text.count(self.image_token) != len(sample.images):
            raise DataError(
                f"{len(sample.images)} images, but the chat template shows {text.count(self.image_token)}",
                where=sample.where,
                fix="use a chat template that writes the image token for every image",
            )
        spans, cursor = [], 0
        for number, turn in enumerate(sample.turns):
            if turn.role != "assistant":
                continue
            start = self._answer_start(sample, number, text, cursor)
            cursor = self._answer_end(sample, number, text, start)
            spans.append((start, cursor))
        growth = len(self.image_text) - len(self.image_token)
        shift = [
            (
                begin + growth * text.count(self.image_token, 0, begin),
                end + growth * text.count(self.image_token, 0, end),
            )
            for begin, end in spans
        ]
        return self.expand(text), shift

    def _answer_start(self, sample: Sample, number: int, text: str, cursor: int) -> int:
        prompt = self.render(sample, number, prompt=True)
        if text.startswith(prompt):
            return len(prompt)
        # Some templates rewrite earlier turns (Qwen3 drops their thinking), so the prompt is no prefix there.
        start = text.find(sample.turns[number].text, cursor)
        if start < 0:
            raise DataError(
                f"the chat template does not show answer {number}",
                where=sample.where,
                fix="check the chat template",
            )
        return start

    def _answer_end(self, sample: Sample, number: int, text: str, start: int) -> int:
        if number + 1 == len(sample.turns):
            end = len(text)
        elif text.startswith(until := self.render(sample, number + 1)):
            end = len(until)
        else:
            answer = sample.turns[number].text
            end = self._past_special(text, text.find(answer, start) + len(answer))
        # The line break that templates put behind the end-of-turn marker teaches nothing.
        return start + len(text[start:end].rstrip())

    def _past_special(self, text: str, end: int) -> int:
        for token in self.tokenizer.all_special_tokens:
            if text.startswith(token, end):
                return end + len(token)
        return end

    def _add(
        self,
        report: EncodeReport,
        sample: Sample,
        answers: list[tuple[int, int]],
        ids: np.ndarray,
        offsets: np.ndarray,
    ) -> None:
        learned = np.zeros(len(ids), bool)
        for start, end in answers:
            inside = (offsets[:, 1] > start) & (offsets[:, 0] < end) & (offsets[:, 1] > offsets[:, 0])
            if np.any(inside & (offsets[:, 0] < start)):
                report.merged_boundaries.append(sample.where)
            learned |= inside
        labels = np.where(learned & (ids != self.image_token_id), ids, IGNORED).astype(np.int32)
        if not learned.any():
            raise NoLabelError(
                "the answer has no token to learn from", where=sample.where, fix="give it an answer"
            )
        if len(ids) > self.max_length:
            is_image = ids == self.image_token_id
            if is_image[self.max_length :].any() or not (labels[: self.max_length] != IGNORED).any():
                report.dropped.append(sample.where)
                return
            report.cut.append(sample.where)
            ids, labels = ids[: self.max_length], labels[: self.max_length]
        seen = np.flatnonzero(ids == self.image_token_id)
        report.encoded.append(
            Encoded(ids, labels, sample.images, sample, int(seen[-1]) + 1 if len(seen) else 0)
        )


def count_image_tokens(processor: Any) -> int:
    """How many tokens one image takes, asked of the processor with a blank picture."""
    blank = Image.new("RGB", (32, 32), "white")
    ids = processor(images=[blank], text=processor.image_token, return_tensors="pt")["input_ids"][0]
    return int((ids == processor.tokenizer.convert_tokens_to_ids(processor.image_token)).sum())
