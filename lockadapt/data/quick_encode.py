"""The encoder's quick way: rows whose template only copies them are rendered once a shape, then tokenised.

A row takes it if its texts hold nothing that the chat template looks for and no control token. The template
is then rendered for the first rows of every shape of conversation only, an image is one token until the text
is tokenised, and labels are found for many rows at once. Some rows of every shape go both ways, and have to
come out equal.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lockadapt.data.dialogue import Copied, Dialogue, Span
from lockadapt.data.sample import Sample
from lockadapt.models.chat_template import adds_special_tokens
from lockadapt.models.template_strings import template_strings

AUDITED = 8
"""Rows of every shape that go both ways, from the first."""

AUDITED_EVERY = 256
"""Of the rows of a shape, one in so many goes both ways as well."""

IGNORED = -100
"""Label of a position that is not learned (PyTorch's `cross_entropy` default)."""


_NONE: list[np.ndarray] = []


class QuickText(NamedTuple):
    """A row as it is tokenised.

    Attributes:
        text: each image one marker.
        answers: spans of what is learned, in characters.
        images: the token ids that stand for each image.
        special: whether the tokenizer adds its special tokens.
        audited: whether the row has to go the long way as well.
    """

    text: str
    answers: Sequence[Span]
    images: Sequence[np.ndarray]
    special: bool
    audited: bool


@dataclass(eq=False, slots=True)
class QuickRow:
    """An encoded row, before anything is cut.

    Attributes:
        input_ids, labels: int32 (tokens,).
        merged: how many answers begin inside of a token.
        image_end: the place behind the last image token, 0 without images.
        sure: it has labels, and none is the token for unknown pieces.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    merged: int
    image_end: int
    sure: bool

    def equals(self, other: QuickRow) -> bool:
        """Whether two ways led to the same."""
        return (
            np.array_equal(self.input_ids, other.input_ids)
            and np.array_equal(self.labels, other.labels)
            and (self.merged, self.image_end) == (other.merged, other.image_end)
        )


@dataclass
class _Plan:
    """How rows of one shape are written, and how many were."""

    copied: Copied
    special: bool
    rows: int = 0


class QuickEncoder:
    """Writes and tokenises rows that the template only copies.

    Args:
        dialogue: the chat template.
        image_token_id: of the image token; -1: there is none.
        controls: tokens that no text of a row may forge.
        image_texts: what stands for each image of a sample.
    """

    def __init__(
        self,
        dialogue: Dialogue,
        image_token_id: int,
        controls: Sequence[str],
        image_texts: Callable[[Sample], Sequence[str]],
    ) -> None:
        self.dialogue, self.tokenizer = dialogue, dialogue.tokenizer
        self.image_token_id, self.image_texts = image_token_id, image_texts
        self.refused = 0
        self._plans: dict[Any, _Plan | None] = {}
        self._image_ids: dict[str, np.ndarray | None] = {}
        self._images: dict[tuple[str, ...], list[np.ndarray] | None] = {}
        strings = template_strings(dialogue.template)
        self._whole = frozenset[str]() if strings is None else strings.whole
        self._looked_for: Callable[[str], Any] | None = None
        if strings is not None:
            marks = {*strings.within, *controls, dialogue.image_token, str(self.tokenizer.bos_token or "")}
            self._looked_for = re.compile("|".join(re.escape(mark) for mark in sorted(marks) if mark)).search

    def write(self, sample: Sample) -> QuickText | None:
        """Write a row.

        Args:
            sample: a conversation.

        Returns:
            Its text; None: it has to go the long way.

        Raises:
            DataError, SafetyError: as `Encoder.image_texts`.
        """
        looked_for, whole = self._looked_for, self._whole
        if looked_for is None:
            return None
        shape = _shape(sample)
        plan = self._plans.get(shape) or self._plan(shape, sample)
        if plan is None:
            return None
        texts = [turn.text for turn in sample.turns]
        for text in texts:
            if not text or text != text.strip() or text in whole or looked_for(text):
                return None
        images = self._images_of(sample) if sample.images else _NONE
        if images is None:
            return None
        text, answers = plan.copied.write(texts)
        plan.rows += 1
        audited = plan.rows <= AUDITED or plan.rows % AUDITED_EVERY == 0
        return QuickText(text, answers, images, plan.special, audited)

    def refuse(self, sample: Sample) -> None:
        """Let all rows of a sample's shape go the long way from now on; counted in `refused`."""
        self.refused += 1
        self._plans[_shape(sample)] = None

    def rows(self, texts: Sequence[QuickText]) -> list[QuickRow | None]:
        """Tokenise rows, and find their labels.

        Args:
            texts: from `write`.

        Returns:
            The rows; None for one whose text has other image tokens than the row has images.
        """
        rows: list[QuickRow | None] = [None] * len(texts)
        for special in (False, True):
            numbers = [number for number, text in enumerate(texts) if text.special == special]
            if numbers:
                made = self._tokenised([texts[number] for number in numbers], special)
                for number, row in zip(numbers, made, strict=True):
                    rows[number] = row
        return rows

    def _plan(self, shape: Any, sample: Sample) -> _Plan | None:
        """Of a shape of which a row went the long way already, and whose rows did not come out otherwise."""
        if shape in self._plans or (copied := self.dialogue.copied(sample)) is None:
            return None
        if any(turn.places or (turn.images and turn.role == "assistant") for turn in sample.turns):
            self._plans[shape] = None  # texts between images; or what frames an image would be learned
            return None
        text, _ = copied.write([turn.text for turn in sample.turns])
        plan = self._plans[shape] = _Plan(copied, adds_special_tokens(self.tokenizer, text))
        return plan

    def _images_of(self, sample: Sample) -> list[np.ndarray] | None:
        """The ids that stand for each image of a row; None: they depend on what stands beside them."""
        if not self.dialogue.image_token:
            return _NONE
        expanded = tuple(self.image_texts(sample))
        if expanded not in self._images:
            ids = [self._ids_of(text) for text in expanded]
            self._images[expanded] = None if any(some is None for some in ids) else ids  # type: ignore[assignment]
        return self._images[expanded]

    def _ids_of(self, expanded: str) -> np.ndarray | None:
        """The ids that stand for an image, whatever stands beside it; None: it depends on that."""
        if expanded not in self._image_ids:
            self._image_ids[expanded] = self._tried(expanded)
        return self._image_ids[expanded]

    def _tried(self, expanded: str) -> np.ndarray | None:
        marker = self.dialogue.image_token
        count, rest = divmod(len(expanded), len(marker))
        if count > 3 and not rest and expanded == marker * count:
            # Three follow each other as any number does.
            few = self._ids_of(marker * 3)
            return None if few is None else np.full(count, self.image_token_id, np.int32)

        def ids(text: str) -> list[int]:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

        alone = ids(expanded)
        for before, behind in itertools.product(("", "a", "a ", "a\n", ">"), ("", "b", " b", "\nb", "<")):
            single = ids(before + marker + behind)
            if single.count(self.image_token_id) != 1:
                return None
            at = single.index(self.image_token_id)
            if [*single[:at], *alone, *single[at + 1 :]] != ids(before + expanded + behind):
                return None
        return np.array(alone, np.int32)

    def _tokenised(self, texts: Sequence[QuickText], special: bool) -> list[QuickRow | None]:
        backend = self.tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        made = backend.encode_batch([item.text for item in texts], add_special_tokens=special)
        lengths = np.array([len(item) for item in made])
        total, chain = int(lengths.sum()), itertools.chain.from_iterable
        ids = np.fromiter(chain(item.ids for item in made), np.int32, total)
        offsets = np.fromiter(chain(chain(item.offsets for item in made)), np.int32, 2 * total).reshape(-1, 2)
        learned, merged = _learned(texts, lengths, offsets)
        ends = np.cumsum(lengths)
        owners = np.repeat(np.arange(len(texts)), lengths)
        taught = np.zeros(len(texts), bool)
        taught[owners[learned]] = True
        if (unknown := self.tokenizer.unk_token_id) is not None:
            taught[owners[learned & (ids == unknown)]] = False
        image_ends = np.zeros(len(texts), np.int64)
        if self.image_token_id >= 0:
            marked = ids == self.image_token_id
            if (np.bincount(owners[marked], minlength=len(texts)) != [len(i.images) for i in texts]).any():
                return [None] * len(texts)
            learned &= ~marked
        labels = np.where(learned, ids, np.int32(IGNORED))
        if self.image_token_id >= 0 and marked.any():
            images = [image for item in texts for image in item.images]
            ids, labels, begins = _expanded(ids, labels, marked, images)
            image_ends[owners[marked]] = begins[1:][marked] - begins[(ends - lengths)[owners[marked]]]
            lengths, ends = begins[ends] - begins[ends - lengths], begins[ends]
        facts = (ends - lengths, ends, merged, image_ends, taught)
        return [
            QuickRow(ids[begin:end], labels[begin:end], across, image_end, sure)
            for begin, end, across, image_end, sure in zip(*(fact.tolist() for fact in facts), strict=True)
        ]


def _expanded(
    ids: np.ndarray, labels: np.ndarray, marked: np.ndarray, images: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Puts the tokens of images in the place of their markers.

    Args:
        ids: int32 (tokens,), of rows one behind another.
        labels: of the same shape.
        marked: where a marker stands; at least one does.
        images: what stands for each of them.

    Returns:
        Ids and labels, (new tokens,);
        where each of the old tokens begins in them, and the end, (tokens + 1,).
    """
    marker = ids[marked][0]
    repeats = np.ones(len(ids), np.int64)
    repeats[marked] = [len(image) for image in images]
    begins = np.concatenate([[0], np.cumsum(repeats)])
    texts = begins[:-1][~marked]
    expanded, taught = np.full(begins[-1], marker, np.int32), np.full(begins[-1], IGNORED, np.int32)
    expanded[texts], taught[texts] = ids[~marked], labels[~marked]
    distinct = {id(image): image for image in images}.values()
    if any((image != marker).any() for image in distinct):  # it is framed, or has rows and columns
        for begin, image in zip(begins[:-1][marked].tolist(), images, strict=True):
            expanded[begin : begin + len(image)] = image
    return expanded, taught, begins


def _shape(sample: Sample) -> Any:
    """As `shape_of`, of conversations whose images stand before texts; some others are apart from them."""
    return tuple([(turn.role, turn.images, bool(turn.places)) for turn in sample.turns])


def _learned(
    texts: Sequence[QuickText], lengths: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens are learned, bool (tokens,), and how many answers of each row begin inside of one."""
    owners = np.repeat(np.arange(len(texts)), lengths)
    solid = offsets[:, 1] > offsets[:, 0]
    learned, merged = np.zeros(len(offsets), bool), np.zeros(len(texts), np.int64)
    for turn in range(max(len(item.answers) for item in texts)):
        spans = np.array(
            [item.answers[turn] if turn < len(item.answers) else (-1, -1) for item in texts], np.int32
        )[owners]
        inside = solid & (offsets[:, 1] > spans[:, 0]) & (offsets[:, 0] < spans[:, 1])
        learned |= inside
        across = np.zeros(len(texts), bool)
        across[owners[inside & (offsets[:, 0] < spans[:, 0])]] = True
        merged += across
    return learned, merged
