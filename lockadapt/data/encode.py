"""Turns a Sample into token ids and labels: the whole text is tokenized once, only answers have labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lockadapt.architectures import inputs_of
from lockadapt.architectures.generic.inputs import StockInputs
from lockadapt.data.client_ids import (
    MAX_PIXELS,
    beside_prompt_ids,
    refuse_text_alone,
    stock_input_ids,
    stock_prompt_ids,
)
from lockadapt.data.control_tokens import ControlTokens
from lockadapt.data.dialogue import Dialogue, Written, shape_of
from lockadapt.data.images import image_size
from lockadapt.data.problems import quote
from lockadapt.data.quick_encode import QuickEncoder, QuickText
from lockadapt.data.quick_row import IGNORED, QuickRow
from lockadapt.data.sample import ImageRef, Sample, message, until_each_answer
from lockadapt.errors import AssemblyError, DataError, LockadaptError, NoLabelError
from lockadapt.models.chat_template import adds_special_tokens, control_tokens

__all__ = ["IGNORED", "EncodeReport", "Encoded", "Encoder", "distinct_images"]

PROVED_SHAPES = 8
"""Kinds of conversations (roles and images of turns) whose first row is compared with the stock processor."""

CHUNK = 512
"""Rows that are tokenised at a time."""


@dataclass(frozen=True, eq=False, slots=True)
class Encoded:
    """A sample as arrays of equal length.

    Attributes:
        input_ids, labels: int32 (tokens,); `labels` is IGNORED off the answers.
        images: one entry an image span, in order.
        sample: what it was made from.
        image_end: the place behind the last image token, 0 without images.
        prompt: how many tokens, the first ones, an encoder reads; None: prompt and answer are one sequence.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    images: tuple[ImageRef, ...]
    sample: Sample
    image_end: int = 0
    prompt: int | None = None


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


def distinct_images(rows: Sequence[Encoded | Sample]) -> dict[str, ImageRef]:
    """Every image that rows use, once, by key."""
    return {image.key: image for row in rows for image in row.images}


class Encoder:
    """Encodes samples for one processor.

    Args:
        processor: a stock processor with `tokenizer` (fast), `image_processor`, `image_token` and a chat
            template; or one that keeps images and texts apart (no `image_token`), whose samples are no
            conversations. Where images are shown beside the text, the tokenizer has the template, and no
            token stands for them.
            Its chat template is settled in place (`settle_template`).
        max_length: the longest sample in tokens, images included; text behind it is cut.
        allow_special_tokens: whether control tokens that a row's text spells out become control tokens.
        apart: whether prompts and answers are tokens of their own, the prompt's as a client makes them: an
            encoder reads the former, a decoder writes the latter. Each answer of a conversation is then a row
            by itself, with what was said before it as its prompt.

    Raises:
        DataError: the tokenizer is not a fast one (no offsets), or there is no chat template, or none that is
            valid.
    """

    def __init__(
        self, processor: Any, max_length: int, allow_special_tokens: bool = False, apart: bool = False
    ) -> None:
        self.processor, self.tokenizer, self.max_length = processor, processor.tokenizer, max_length
        self.allow_special_tokens, self.apart = allow_special_tokens, apart
        if not self.tokenizer.is_fast:
            raise DataError(
                "the tokenizer gives no character offsets", fix="use a fast tokenizer (tokenizer.json)"
            )
        self.image_token, self.image_token_id, self.image_tokens, self.image_text = "", -1, 0, ""
        self._proved: set[Any] = set()
        self.stock: StockInputs | None = None
        self.beside = False
        self._sizes: dict[str, tuple[int, int]] = {}
        inputs = inputs_of(processor)
        if inputs.apart:
            self.controls = ControlTokens(self.tokenizer, control_tokens(self.tokenizer))
            return
        self.beside = inputs.beside
        if not inputs.beside:
            self.image_token = str(processor.image_token)
            self.image_token_id = int(self.tokenizer.convert_tokens_to_ids(self.image_token))
        template = getattr(processor, "chat_template", None) or self.tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default") or next(iter(template.values()))
        if not template:
            raise DataError(
                "the processor has no chat template",
                fix="add chat_template.jinja to its folder, or assemble with lockadapt, which writes one",
            )
        self.dialogue = Dialogue(self.tokenizer, template, self.image_token)
        if self.dialogue.template != template:
            # Saved with the processor, so that clients prompt as training does.
            (self.tokenizer if inputs.beside else processor).chat_template = self.dialogue.template
        self.controls = ControlTokens(self.tokenizer, self.dialogue.controls)
        if inputs.stock:
            self.stock = StockInputs(processor)
            self.image_token_id, self.image_tokens = self.stock.token, self.stock.probe_tokens
        elif inputs.span is not None:
            span = inputs.span(processor)
            self.image_tokens, self.image_text = span.count, span.text
        self.quick = QuickEncoder(
            self.dialogue, self.image_token_id, self.controls.tokens, lambda sample: self.image_texts(sample)
        )

    def render(self, sample: Sample, turns: int | None = None, *, prompt: bool = False) -> str:
        """See `Dialogue.render`."""
        return self.dialogue.render(sample, turns, prompt=prompt)

    def expand(self, text: str) -> str:
        """Each image marker repeated as often as the tower gives features, framed as the processor frames it.

        Args:
            text: with image markers.

        Returns:
            The text with what stands for each image.

        Raises:
            AssemblyError: what an image becomes depends on its size, or it becomes no tokens at all.
        """
        if self.beside:
            raise AssemblyError(
                "images are shown beside the text, where this objective does not show them",
                fix="use vqa, caption or dialogue",
            )
        if self.stock is not None:
            raise AssemblyError(
                f"{type(self.processor).__name__} makes other texts of images of other sizes, which this "
                "objective does not take",
                fix="use vqa, caption or dialogue",
            )
        return text.replace(self.image_token, self.image_text)

    def image_texts(self, sample: Sample) -> tuple[str, ...]:
        """What stands for each image of a sample in the token sequence.

        Args:
            sample: its images are opened for their sizes if the processor goes by them.

        Returns:
            A text for each image, in their order.

        Raises:
            DataError: an image's size cannot be read, or the processor refuses an image of that shape.
            SafetyError: an image is too large.
        """
        if self.stock is None:
            return (self.image_text,) * len(sample.images)
        refuse_text_alone(self.stock, sample)
        for image in sample.images:
            if image.key not in self._sizes:
                self._sizes[image.key] = image_size(image, MAX_PIXELS, sample.where)
        sizes = tuple(self._sizes[image.key] for image in sample.images)
        try:
            return self.stock.expansions(sizes)
        except LockadaptError:
            raise
        except Exception as error:
            shapes = ", ".join(f"{width} x {height}" for width, height in sizes)
            raise DataError(
                f"{type(self.processor).__name__} takes no picture of {shapes} pixels: {error}",
                where=sample.where,
                fix="crop the picture, or leave the row out",
            ) from error

    def refuse_marker(self, text: str, what: str, where: str) -> None:
        """Refuses a text that holds what stands for an image.

        Args:
            text: from a row or a user.
            what: the message, up to the marker.
            where: its place.

        Raises:
            DataError: it does.
        """
        if self.image_token and self.image_token in text:
            raise DataError(f"the {what} {self.image_token!r}", where=where, fix="remove it")

    def text_ids(
        self, text: str, where: str, content: str | None = None, *, special: bool | None = None
    ) -> list[int]:
        """Token ids of a text outside of a conversation.

        Args:
            text: as the model reads it.
            where: its row, for the error.
            content: the part of it that came from the row; default: all.
            special: whether the tokenizer adds its special tokens; default: as for a conversation.

        Returns:
            The ids.

        Raises:
            DataError: what was said spells a control token out that cannot be taken as plain text.
        """
        begin = 0 if content is None else text.index(content)
        written = Written(text, (), ((begin, begin + len(text if content is None else content)),))
        return self._tokens([written], [where], special)[0][0]

    def prompt_ids(self, sample: Sample) -> list[int]:
        """Token ids of everything before the last answer, as the stock processor makes them for `generate`.

        Args:
            sample: whose last turn is the answer.

        Returns:
            The ids.

        Raises:
            DataError: it does not fit, or as `encode`.
        """
        written = self._known(sample, self.dialogue.prompt(sample))
        ids = self._tokens([written], [sample.where])[0][0]
        if len(ids) >= self.max_length:
            raise DataError(
                f"the prompt has {len(ids)} tokens, the limit is {self.max_length}", where=sample.where
            )
        return ids

    def encode(
        self, samples: Sequence[Sample], progress: Callable[[int, int], None] | None = None
    ) -> EncodeReport:
        """Encodes samples in order; cut and dropped ones are counted in the report by row.

        The first rows are proved: their labels spell the answers, and the stock processor makes the same
        prompts.

        Args:
            samples: in order.
            progress: is told how many are done, of how many.

        Returns:
            What became of them.

        Raises:
            NoLabelError: a sample has nothing to learn from though nothing was cut.
            DataError: the image marker stands in a text, a text spells a control token out that cannot be
                taken as plain text, the tokenizer does not know what an answer is written with, or the chat
                template refuses, hides or changes a turn.
        """
        report, start = EncodeReport(), 0
        while start < len(samples):
            part = samples[start : start + CHUNK]
            if self.apart:
                self._encode_apart(report, part)
            elif not self._encode(report, part):
                report, start = EncodeReport(), 0  # rows before may have come out otherwise, too
                continue
            start += len(part)
            if progress:
                progress(start, len(samples))
        return report

    def _encode(self, report: EncodeReport, samples: Sequence[Sample]) -> bool:
        """Encodes rows; False where the quick way led a shape elsewhere, which does not take it again."""
        quick: dict[int, QuickText] = {}
        written: dict[int, Written] = {}
        for number, sample in enumerate(samples):
            if (text := self.quick.write(sample)) is not None:
                quick[number] = text
            if text is None or text.audited:
                written[number] = self._written(sample)
        rows = dict(zip(quick, self.quick.rows(list(quick.values())), strict=True))
        for number, row in rows.items():
            if (row is None or not row.sure) and number not in written:
                written[number] = self._written(samples[number])
        origins = [samples[number].where for number in written]
        tokens = dict(zip(written, self._tokens(list(written.values()), origins), strict=True))
        for number, sample in enumerate(samples):
            row = rows.get(number)
            if number in written:
                ids, offsets = (np.asarray(values, np.int32) for values in tokens[number])
                made = self._row(sample, written[number], ids, offsets)
                if row is not None and not row.equals(made):
                    self.quick.refuse(sample)
                    return False
                row = made
            assert row is not None
            self._add(report, sample, row)
        return True

    def _written(self, sample: Sample) -> Written:
        """The expanded text and where the answers stand in it, what ends them included."""
        for turn in sample.turns:
            self.refuse_marker(turn.text, "text holds the image marker", sample.where)
        return self._known(sample, self.dialogue.write(sample))

    def _known(self, sample: Sample, written: Written) -> Written:
        """The text with its images expanded; refused where rows might forge it."""
        if written.contents is None and not self.allow_special_tokens:
            for turn in sample.turns:
                self.controls.refuse(turn.text, sample.where)
        return self._as_read(sample, written)

    def _as_read(self, sample: Sample, written: Written) -> Written:
        """The text as the processor tokenises it."""
        text, stock = written.expanded(self.image_token, self.image_texts(sample)), self.stock
        return text if stock is None else text.opened(stock.lead).closed(stock.tail, sample.where)

    def _tokens(
        self, written: Sequence[Written], origins: Sequence[str], special: bool | None = None
    ) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Ids and offsets; control tokens in what rows say are made of plain pieces."""
        made: dict[int, tuple[list[int], list[tuple[int, int]]]] = {}
        plain: dict[bool, list[int]] = {}
        for number, (item, where) in enumerate(zip(written, origins, strict=True)):
            adds = adds_special_tokens(self.tokenizer, item.text) if special is None else special
            spelled = []
            if item.contents is not None and not self.allow_special_tokens:
                spelled = self.controls.spelled(item.text, item.contents)
            if spelled and item.contents is not None:
                made[number] = self.controls.split(item.text, spelled, item.contents, adds, where)
            else:
                plain.setdefault(adds, []).append(number)
        for adds, numbers in plain.items():
            tokens = self.tokenizer(
                [written[number].text for number in numbers],
                add_special_tokens=adds,
                return_offsets_mapping=True,
            )
            pairs = zip(tokens["input_ids"], tokens["offset_mapping"], strict=True)
            made.update(zip(numbers, pairs, strict=True))
        return [made[number] for number in range(len(written))]

    def _row(self, sample: Sample, written: Written, ids: np.ndarray, offsets: np.ndarray) -> QuickRow:
        """Finds the labels of a row, and proves them where its shape is new."""
        learned, merged = np.zeros(len(ids), bool), 0
        for start, end in written.answers:
            inside = (offsets[:, 1] > start) & (offsets[:, 0] < end) & (offsets[:, 1] > offsets[:, 0])
            merged += bool(np.any(inside & (offsets[:, 0] < start)))
            learned |= inside
        labels = np.where(learned & (ids != self.image_token_id), ids, IGNORED).astype(np.int32)
        if not learned.any():
            raise NoLabelError(
                "the answer has no token to learn from", where=sample.where, fix="give it an answer"
            )
        self._check_known(sample, written, ids, labels, offsets)
        if (shape := shape_of(sample)) not in self._proved and len(self._proved) < PROVED_SHAPES:
            self._proved.add(shape)
            self._prove_labels(sample, written, labels, merged > 0)
            self._prove_prompt(sample)
        seen = np.flatnonzero(ids == self.image_token_id)
        return QuickRow(ids, labels, merged, int(seen[-1]) + 1 if len(seen) else 0, True)

    def _add(self, report: EncodeReport, sample: Sample, row: QuickRow) -> None:
        """Cuts or drops a row that is too long, and adds it to the report."""
        ids, labels, image_end = row.input_ids, row.labels, row.image_end
        report.merged_boundaries += [sample.where] * row.merged
        if len(ids) > self.max_length:
            if image_end > self.max_length or not (labels[: self.max_length] != IGNORED).any():
                report.dropped.append(sample.where)
                return
            report.cut.append(sample.where)
            ids, labels = ids[: self.max_length], labels[: self.max_length]
        report.encoded.append(Encoded(ids, labels, sample.images, sample, image_end))

    def _encode_apart(self, report: EncodeReport, samples: Sequence[Sample]) -> None:
        """Encodes each answer of each conversation, behind what was said before it."""
        for sample in samples:
            for answered in until_each_answer(sample):
                self._add_apart(report, answered)

    def _add_apart(self, report: EncodeReport, sample: Sample) -> None:
        """Adds a row of a prompt and the answer behind it, each tokenized by itself."""
        written = self._written(sample)
        begin, end = written.answers[-1]
        span = None if written.contents is None else written.contents[-1]
        contents = None if span is None else ((span[0] - begin, span[1] - begin),)
        answer = Written(written.text[begin:end], ((0, end - begin),), contents)
        asked = self._known(sample, self.dialogue.prompt(sample))
        prompt = self._tokens([asked], [sample.where])[0][0]
        ids, offsets = self._tokens([answer], [sample.where], special=False)[0]
        labels = np.asarray(ids, np.int32)
        self._check_known(sample, answer, labels, labels, np.asarray(offsets, np.int32))
        if (shape := shape_of(sample)) not in self._proved and len(self._proved) < PROVED_SHAPES:
            self._proved.add(shape)
            self._prove_labels(sample, answer, labels, merged=False)
            self._prove_prompt(sample)
        if len(prompt) >= self.max_length:
            report.dropped.append(sample.where)
            return
        if len(prompt) + len(labels) > self.max_length:
            report.cut.append(sample.where)
            labels = labels[: self.max_length - len(prompt)]
        tokens = np.concatenate([np.asarray(prompt, np.int32), labels])
        learned = np.concatenate([np.full(len(prompt), IGNORED, np.int32), labels])
        seen = np.flatnonzero(tokens[: len(prompt)] == self.image_token_id)
        end = int(seen[-1]) + 1 if len(seen) else 0
        report.encoded.append(Encoded(tokens, learned, sample.images, sample, end, len(prompt)))

    def _check_known(
        self, sample: Sample, written: Written, ids: np.ndarray, labels: np.ndarray, offsets: np.ndarray
    ) -> None:
        """No answer may be learned as the token for unknown pieces."""
        unknown = self.tokenizer.unk_token_id
        if unknown is None or not (positions := np.flatnonzero(labels == unknown)).size:
            return
        for begin, end in offsets[positions].tolist():
            piece = written.text[begin:end]
            if piece != str(self.tokenizer.unk_token):
                raise DataError(
                    f"the tokenizer does not know {quote(piece)}: it would be learned as "
                    f"{self.tokenizer.unk_token}",
                    where=sample.where,
                    fix="change the answer, or use an LLM whose tokenizer knows it",
                )

    def _prove_labels(self, sample: Sample, written: Written, labels: np.ndarray, merged: bool) -> None:
        """What is learned spells the answers and what ends them, nothing else."""
        answers = "".join(written.text[begin:end] for begin, end in written.answers)
        again = self.tokenizer(answers, add_special_tokens=False)["input_ids"]
        learned = _squeezed(self.tokenizer.decode(labels[labels != IGNORED].tolist()))
        # Tokenizers that lower or compose characters spell the same answer otherwise.
        shown = answers.replace(self.image_token, "") if self.image_token else answers
        expected = {_squeezed(shown), _squeezed(self.tokenizer.decode(again))}
        if learned in expected or (merged and any(learned.endswith(answer) for answer in expected)):
            return
        raise DataError(
            f"the labels spell {quote(learned)}, the answer is {quote(answers)}",
            where=sample.where,
            fix="use another tokenizer or chat template",
        )

    def _prove_prompt(self, sample: Sample) -> None:
        """Checks that the stock processor makes the tokens that training puts before the last answer."""
        written = self.dialogue.prompt(sample)
        if written.contents is None or self.controls.spelled(written.text, written.contents):
            return
        mine = self._tokens([self._as_read(sample, written)], [sample.where])[0][0]
        last = max(number for number, turn in enumerate(sample.turns) if turn.role == "assistant")
        messages = [message(turn) for turn in sample.turns[:last]]
        if self.stock is not None:
            theirs = stock_input_ids(self.stock, messages, sample)
        elif self.beside:
            theirs = beside_prompt_ids(self.tokenizer, messages)
        else:
            theirs = stock_prompt_ids(self.processor, messages, len(sample.images), sample.where)
        if mine != theirs:
            difference = next((n for n, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), -1)
            shown = [
                self.tokenizer.convert_ids_to_tokens(
                    ids[difference : difference + 4] if difference >= 0 else ids[-4:]
                )
                for ids in (mine, theirs)
            ]
            raise DataError(
                f"training makes {len(mine)} tokens of a prompt, the Transformers processor {len(theirs)} "
                f"({shown[0]}, not {shown[1]})",
                where=sample.where,
                fix="use another tokenizer or chat template",
            )


def _squeezed(text: str) -> str:
    return "".join(text.split())
