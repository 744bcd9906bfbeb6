"""How a chat template writes a sample: its text, the places of the answers, the prompt of the last one.

One rule for training, evaluation, chat and exports: the prompt is what the template makes of the turns
before an answer with `add_generation_prompt`, and the text that is trained on begins with it.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from lockadapt.data.problems import quote
from lockadapt.data.sample import Sample, Turn
from lockadapt.errors import DataError, NoLabelError
from lockadapt.models.chat_template import (
    CLOSED_THOUGHT,
    MARKS,
    control_tokens,
    end_tokens,
    render,
    settle_template,
)

Span = tuple[int, int]
"""Begin and end of a part of a text, in characters."""


@dataclass(frozen=True)
class Written:
    """A sample as text.

    Attributes:
        text: the conversation, each image one marker.
        answers: spans of the assistant's turns with what ends them, in order.
        contents: spans of the texts that came from the row, in order; None where the template changes them.
    """

    text: str
    answers: tuple[Span, ...]
    contents: tuple[Span, ...] | None

    def expanded(self, marker: str, images: Sequence[str]) -> Written:
        """With every image marker replaced by what stands for its image, one text an image.

        Without a marker images stand beside the text, which stays as it is.
        """
        if not marker:
            return self
        pieces = self.text.split(marker)
        text = pieces[0] + "".join(image + piece for image, piece in zip(images, pieces[1:], strict=True))
        growth = [0, *itertools.accumulate(len(image) - len(marker) for image in images)]

        def moved(spans: tuple[Span, ...]) -> tuple[Span, ...]:
            return tuple(
                (
                    begin + growth[self.text.count(marker, 0, begin)],
                    end + growth[self.text.count(marker, 0, end)],
                )
                for begin, end in spans
            )

        contents = None if self.contents is None else moved(self.contents)
        return Written(text, moved(self.answers), contents)

    def opened(self, lead: str) -> Written:
        """With what a processor puts in front of a text that does not begin with it; may be empty."""
        return self if self.text.startswith(lead) else self._with(lead, 0)

    def closed(self, tail: str, where: str) -> Written:
        """With what a processor puts behind a prompt, in front of the answer.

        Args:
            tail: that text; may be empty.
            where: the row, for the message.

        Returns:
            The same with it: a prompt ends with it.

        Raises:
            DataError: there are several answers, which such a processor has no place for.
        """
        if not tail:
            return self
        if len(self.answers) > 1:
            raise DataError(
                "the model's processor closes a prompt once, and the conversation has several answers",
                where=where,
                fix="split it into rows of one question and one answer",
            )
        return self._with(tail, self.answers[0][0] if self.answers else len(self.text))

    def _with(self, inserted: str, at: int) -> Written:
        """With a text in it, behind which all spans from there on move."""

        def moved(spans: tuple[Span, ...]) -> tuple[Span, ...]:
            far = len(inserted)
            return tuple((b + far, e + far) if b >= at else (b, e) for b, e in spans)

        contents = None if self.contents is None else moved(self.contents)
        return Written(self.text[:at] + inserted + self.text[at:], moved(self.answers), contents)


class Dialogue:
    """A processor's chat template.

    Args:
        tokenizer: the processor's.
        template: Jinja; it is settled first (`settle_template`).
        image_token: what the template writes for an image; empty where images stand beside the text.

    Attributes:
        template: what is rendered.
        controls: tokens that a row's text may not forge.
        ends: what the template writes behind a last answer.
        end: the token that is put there because the template writes none; empty where it does.

    Raises:
        DataError: the template is no valid Jinja, or nothing can end an answer.
    """

    def __init__(self, tokenizer: Any, template: str, image_token: str) -> None:
        self.tokenizer, self.template = tokenizer, settle_template(tokenizer, template)
        self.image_token = image_token
        self.controls = control_tokens(tokenizer, self.template)
        self.ends, self.end = end_tokens(tokenizer, self.template), ""
        if not self.ends:
            if tokenizer.eos_token is None:
                raise DataError(
                    "the chat template writes no token behind an answer, and the tokenizer has no eos token",
                    where="chat template",
                    fix="set eos_token in tokenizer_config.json",
                )
            self.end = str(tokenizer.eos_token)
        self._layouts: dict[_Shape, _Layout] = {}
        self._prompts: dict[_Shape, tuple[str, ...]] = {}

    def render(self, sample: Sample, turns: int | None = None, *, prompt: bool = False) -> str:
        """Render turns as text by the chat template.

        Args:
            sample: the conversation.
            turns: how many of its turns, from the first; None: all.
            prompt: add what asks the assistant to speak.

        Returns:
            The text, with its special tokens.

        Raises:
            DataError: the template refuses them, or fails.
        """
        messages = sample.messages()[:turns]
        return render(self.tokenizer, self.template, messages, prompt=prompt, where=sample.where)

    def write(self, sample: Sample) -> Written:
        """Write the text that is trained on, and find the answers in it.

        Args:
            sample: the conversation.

        Returns:
            The text and the places of its answers.

        Raises:
            DataError: the template refuses the conversation, hides or changes a turn, or its generation
                prompt is no beginning of what is trained.
            NoLabelError: it shows nothing of an answer that is empty.
        """
        text, owners, texts = self.render(sample), *_pieces(sample)
        if self.image_token and text.count(self.image_token) != len(sample.images):
            raise DataError(
                f"{len(sample.images)} images, but the chat template shows {text.count(self.image_token)}",
                where=sample.where,
                fix="use a chat template that writes the image token for every image",
            )
        shape = shape_of(sample)
        if shape not in self._layouts:
            self._layouts[shape] = self._layout(sample, range(len(texts)))
        layout, whole = self._layouts[shape], True
        if _joined(layout.literals, [texts[number] for number in layout.turns]) != text:
            # What the template writes depends on what is said: found out with the very texts.
            answers = [n for n, owner in enumerate(owners) if sample.turns[owner].role == "assistant"]
            layout, whole = self._layout(sample, answers), False
            if _joined(layout.literals, [texts[number] for number in layout.turns]) != text:
                raise DataError(
                    "the chat template changes an answer: what would be learned is not what the row says",
                    where=sample.where,
                    fix="remove from the answer what the template takes for its own (thoughts, tool calls)",
                )
        return layout.write(texts, self.end, whole)

    def copied(self, sample: Sample) -> Copied | None:
        """How conversations like this one are written by a template that copies what is said.

        Args:
            sample: one that `write` has written.

        Returns:
            The text around the turns; None: a conversation of this shape was not written yet.
        """
        layout = self._layouts.get(shape_of(sample))
        return None if layout is None or not layout.turns else layout.copied(self.end)

    def prompt(self, sample: Sample) -> Written:
        """Write everything before the last answer, and what asks for it.

        Args:
            sample: the conversation.

        Returns:
            The text; its `answers` are empty.

        Raises:
            DataError: as `write`.
        """
        last = max(number for number, turn in enumerate(sample.turns) if turn.role == "assistant")
        before = dataclasses.replace(sample, turns=sample.turns[:last])
        text, texts = self.render(before, prompt=True), _pieces(before)[1]
        shape = shape_of(before)
        if shape not in self._prompts:
            every = range(len(texts))
            named = self.render(_named(before, every), prompt=True)
            self._prompts[shape] = self._literals(before, named, every)
        literals = self._prompts[shape]
        return Written(text, (), _spans(literals, texts) if _joined(literals, texts) == text else None)

    def _layout(self, sample: Sample, marked: Collection[int]) -> _Layout:
        """Where the template puts the texts, found by rendering names in the place of those in `marked`."""
        named = _named(sample, marked)
        text, turns, owners = self.render(named), named.turns, _pieces(sample)[0]
        literals = self._literals(sample, text, marked)
        order, lead = sorted(marked), None
        heads: dict[int, int] = {}
        tails: dict[int, int] = {}
        for position, number in enumerate(order):
            owner = owners[number]
            if turns[owner].role != "assistant":
                continue
            start = text.index(_name(number))
            prompt = self.render(named, owner, prompt=True)
            last = owner + 1 == len(turns)
            if text.startswith(prompt) and len(prompt) <= start:
                heads[position] = start - len(prompt)
            else:
                # Some templates write earlier turns otherwise than the last (Qwen3 drops their thoughts).
                heads[position] = 0
                if last:
                    lead = self._lead(sample, text[:start], prompt)
            behind = start + len(_name(number))
            if last:
                end = len(text)
            elif text.startswith(until := self.render(named, owner + 1)):
                end = len(until)
            else:
                end = behind + len(
                    next((control for control in self.controls if text.startswith(control, behind)), "")
                )
            # The line break that templates put behind the end-of-turn marker teaches nothing.
            tails[position] = len(text[behind:end].rstrip())
        before = None if lead is None else self._literals(sample, lead, order[:-1])
        return _Layout(tuple(order), literals, heads, tails, before)

    def _literals(self, sample: Sample, text: str, marked: Collection[int]) -> tuple[str, ...]:
        """What stands around the names in a rendered conversation.

        Raises:
            DataError: a name does not stand there once, in its order, or an image elsewhere than between the
                texts where the row has it.
        """
        owners = _pieces(sample)[0]
        hidden = [number for number in marked if text.count(_name(number)) != 1]
        if hidden:
            # An answer first: without one there is nothing to learn at all.
            raise _hidden(
                sample, min((sample.turns[owners[number]] for number in hidden), key=lambda turn: turn.role)
            )
        literals, position = [], 0
        for number in sorted(marked):
            begin = text.find(_name(number), position)
            if begin < 0:
                raise _hidden(sample, sample.turns[owners[number]])
            literals.append(text[position:begin])
            position = begin + len(_name(number))
            self._check_gap(sample, number, owners, literals[-1])
        return (*literals, text[position:])

    def _check_gap(self, sample: Sample, number: int, owners: Sequence[int], literal: str) -> None:
        """The images between two texts of a turn stand between them, where clients render it as well."""
        turn = sample.turns[owners[number]]
        before = number - owners.index(owners[number]) if any(turn.places) else 0
        if not before or (self.image_token and literal.count(self.image_token) == turn.gaps[before]):
            return
        why = "shows all images of a turn first" if self.image_token else "writes nothing for images"
        raise DataError(
            f"turn {owners[number] + 1} has images between its texts, but the chat template {why}",
            where=sample.where,
            fix="put the images before the text, or use a model whose template shows both in their order",
        )

    def _lead(self, sample: Sample, before: str, prompt: str) -> str:
        """What is trained before the last answer where the generation prompt begins no finished turn.

        It is the prompt itself, if that differs only in blanks (LLaVA-OneVision) or in a closed thought.
        """
        thought = CLOSED_THOUGHT.search(prompt)
        if "".join(before.split()) == "".join(prompt[: thought.start() if thought else None].split()):
            return prompt
        asked, trained = (quote(_shown(text)[-40:]) for text in (prompt, before))
        raise DataError(
            f"the generation prompt ends with {asked}, but the template writes an answer behind {trained}: "
            "what is trained would not be what is asked",
            where=sample.where,
            fix="change the chat template so that its generation prompt begins a finished turn",
        )


@dataclass(frozen=True)
class Copied:
    """What a template writes around the turns of a conversation.

    Attributes:
        literals: one more than turns.
        answers: of each assistant turn its number, and how many characters before and behind its text are
            learned with it.
    """

    literals: tuple[str, ...]
    answers: tuple[tuple[int, int, int], ...]

    def write(self, texts: Sequence[str]) -> tuple[str, tuple[Span, ...]]:
        """Put texts between the literals.

        Args:
            texts: of all turns; none is empty or has blanks at its ends.

        Returns:
            The whole text, and the spans of the answers with what ends them.
        """
        parts = [""] * (2 * len(texts) + 1)
        parts[::2], parts[1::2] = self.literals, texts
        spans = []
        for turn, head, tail in self.answers:
            begin = sum(map(len, parts[: 2 * turn + 1]))
            spans.append((begin - head, begin + len(texts[turn]) + tail))
        return "".join(parts), tuple(spans)


@dataclass(frozen=True)
class _Layout:
    """The text around the turns of conversations of one shape.

    Attributes:
        turns: which texts stand between the literals: turns, or what stands between the images of a turn.
        literals: one more than texts.
        heads, tails: for each assistant turn, by its place in `turns`, how many characters before and behind
            its text are learned with it.
        lead: literals before the last text as they are trained, where the template writes others.
    """

    turns: tuple[int, ...]
    literals: tuple[str, ...]
    heads: dict[int, int]
    tails: dict[int, int]
    lead: tuple[str, ...] | None

    def ended(self, end: str) -> list[str]:
        """The literals as they are trained, with `end` behind the last answer."""
        literals = list(self.literals if self.lead is None else (*self.lead, self.literals[-1]))
        if end:
            literals[-1] = literals[-1][: self.tails[len(self.turns) - 1]] + end
        return literals

    def copied(self, end: str) -> Copied:
        """The same for texts without blanks at their ends, with `end` behind the last answer."""
        last = len(self.turns) - 1
        answers = (
            (turn, head, self.tails[turn] + (len(end) if turn == last else 0))
            for turn, head in self.heads.items()
        )
        return Copied(tuple(self.ended(end)), tuple(answers))

    def write(self, texts: Sequence[str], end: str, whole: bool) -> Written:
        """What is trained on, with `end` behind the last answer; `whole`: all texts stand between them."""
        literals, turns = self.ended(end), [texts[number] for number in self.turns]
        text, spans = _joined(literals, turns), _spans(literals, turns)
        answers = []
        for position, head in self.heads.items():
            begin, behind = spans[position]
            tail = self.tails[position] + (len(end) if position + 1 == len(turns) else 0)
            start = begin - head
            answers.append((start, start + len(text[start : behind + tail].rstrip())))
        return Written(text, tuple(answers), spans if whole else None)


def shape_of(sample: Sample) -> _Shape:
    """Roles and images of the turns: what conversations that a template writes alike have in common."""
    return tuple((turn.role, turn.gaps) for turn in sample.turns)


_Shape = tuple[tuple[str, tuple[int, ...]], ...]


def _pieces(sample: Sample) -> tuple[list[int], list[str]]:
    """The texts that are said in a conversation, in order, and the turn of each."""
    pairs = [(number, text) for number, turn in enumerate(sample.turns) for text in turn.segments]
    return [number for number, _ in pairs], [text for _, text in pairs]


def _named(sample: Sample, marked: Collection[int]) -> Sample:
    """With names in the place of those of its texts that are in `marked`."""
    numbers, turns = itertools.count(), []
    for turn in sample.turns:
        names = [_name(n) if (n := next(numbers)) in marked else text for text in turn.segments]
        turns.append(turn.said(names))
    return dataclasses.replace(sample, turns=tuple(turns))


def _joined(literals: Sequence[str], texts: Sequence[str]) -> str:
    parts = [literals[0]]
    for text, literal in zip(texts, literals[1:], strict=True):
        parts += (text, literal)
    return "".join(parts)


def _spans(literals: Sequence[str], texts: Sequence[str]) -> tuple[Span, ...]:
    spans, position = [], 0
    for literal, text in zip(literals, texts, strict=False):
        position += len(literal)
        spans.append((position, position + len(text)))
        position += len(text)
    return tuple(spans)


def _name(number: int) -> str:
    return str(number).join(MARKS)


def _shown(text: str) -> str:
    """A rendering as people read it: the names of texts are characters that no screen shows."""
    return re.sub(r"\d+".join(MARKS), "…", text)


def _hidden(sample: Sample, turn: Turn) -> DataError:
    number = next(position for position, candidate in enumerate(sample.turns, start=1) if candidate is turn)
    if turn.role == "assistant" and not turn.text:
        return NoLabelError(
            "the answer has no token to learn from", where=sample.where, fix="give it an answer"
        )
    fix = "check the chat template"
    if turn.role == "system":
        fix = "put what it says into the user's first turn, or use a chat template that shows system turns"
    return DataError(
        f"the chat template does not show turn {number} ({turn.role}) as it is", where=sample.where, fix=fix
    )
