"""Conversations in segments that are tokenised by themselves: what the template writes, and what is said.

The template's own words are tokenised once, and a text that is said again is found among those that are kept.
The tokenizer has to say which characters a token stands for only where something is learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lockadapt.data.batch_tokenizer import BatchTokenizer
from lockadapt.data.dialogue import Copied, Span
from lockadapt.data.image_ids import ImageIds
from lockadapt.data.quick_row import IGNORED, QuickRow
from lockadapt.data.split_points import SplitPoints

KEPT_TOKENS = 1 << 18
"""Once the segments that are kept have so many tokens, all are let go of."""

FEW = 16
"""Fewer texts than these are tokenised in one call, whether something is learned or not."""


@dataclass(eq=False, slots=True)
class Segment:
    """A stretch of a conversation as tokens.

    Attributes:
        chunks: ids and labels, int32 (tokens,), between images; no labels: none is learned; None: an image.
        images: how many.
        merged: how many answers begin inside of a token.
        taught: whether something is learned.
        unknown: whether the token for unknown text is.
    """

    chunks: Sequence[tuple[np.ndarray, np.ndarray | None] | None] = ()
    images: int = 0
    merged: int = 0
    taught: bool = False
    unknown: bool = False


@dataclass(eq=False, slots=True)
class TurnSegment:
    """Some turns that follow each other in conversations of one shape.

    Attributes:
        copied: what the template writes around them.
        first, behind: the number of the first, and that of the one behind the last.
        kept: by what was said.
    """

    copied: Copied
    first: int
    behind: int
    kept: dict[tuple[str, ...], Segment] = field(default_factory=dict)


class SegmentTokenizer:
    """Tokenises stretches of conversations.

    Args:
        tokenizer: a fast one.
        image_token_id: the token that stands for an image; -1: there is none.
    """

    def __init__(self, tokenizer: Any, image_token_id: int) -> None:
        self.tokenizer, self.image_token_id = tokenizer, image_token_id
        self.split_points = SplitPoints(tokenizer)
        self.tokens = BatchTokenizer(tokenizer, self.split_points)
        self._turn_segments = list[TurnSegment]()
        self._tokens = 0

    def parts(self, copied: Copied, special: bool) -> tuple[Segment | TurnSegment, ...]:
        """Part conversations of one shape where the tokenizer does so.

        Args:
            copied: what the template writes around the turns.
            special: whether the tokenizer adds its special tokens.

        Returns:
            What is the same in all of them, and what is said in turn.
        """
        literals, last = copied.literals, len(copied.literals) - 1
        heads = {turn: head for turn, head, _ in copied.answers}
        tails = {turn + 1: tail for turn, _, tail in copied.answers}
        parts: list[Segment | TurnSegment] = []
        first, around = 0, list[str]()
        for number, literal in enumerate(literals):
            tail, head = tails.get(number, 0), len(literal) - heads.get(number, 0)
            begin, end = 0, len(literal)
            places = self.split_points.places(literal)
            if number > 0:
                begin = places[0] if places else end
            if number < last:
                end = places[-1] if places else 0
            if 0 < number < last and not (places and begin <= head and tail <= end):
                around.append(literal)
                continue
            if number > 0:
                turns = range(first, number)
                answers = tuple((t - first, h, b) for t, h, b in copied.answers if t in turns)
                self._turn_segments.append(
                    TurnSegment(Copied((*around, literal[:begin]), answers), first, number)
                )
                parts.append(self._turn_segments[-1])
            learned = [(0, tail - begin)] * (tail > begin) + [(head - begin, end - begin)] * (head < end)
            if begin < end:
                parts.append(same := Segment())
                self._learn([same], [literal[begin:end]], [learned])
            first, around = number, [literal[end:]]
        before, behind = self._special() if special else ((), ())
        return (*before, *parts, *behind)

    def rows(
        self,
        parts: Sequence[Sequence[Segment | TurnSegment]],
        texts: Sequence[tuple[str, ...]],
        images: Sequence[Sequence[ImageIds]],
    ) -> list[QuickRow | None]:
        """Tokenise conversations.

        Args:
            parts: of the shape of each.
            texts: of all turns of each.
            images: what stands for the images of each.

        Returns:
            The rows; None for one whose text has other image tokens than the row has images.
        """
        if self._tokens > KEPT_TOKENS:
            self._let_go()
        new, new_parts, turn_texts = list[Segment](), list[TurnSegment](), list[tuple[str, ...]]()
        rows = list[list[Segment]]()
        for row, turns in zip(parts, texts, strict=True):
            rows.append(segments := [])
            for part in row:
                if isinstance(part, Segment):
                    segments.append(part)
                    continue
                own = turns[part.first : part.behind]
                if (segment := part.kept.get(own)) is None:
                    segment = part.kept[own] = Segment()
                    new.append(segment)
                    new_parts.append(part)
                    turn_texts.append(own)
                segments.append(segment)
        try:
            self._fill(new, new_parts, turn_texts)
        except BaseException:
            self._let_go()  # some are empty
            raise
        return _joined(rows, images)

    def _let_go(self) -> None:
        for segment in self._turn_segments:
            segment.kept.clear()
        self._tokens = 0

    def _fill(
        self, segments: list[Segment], parts: list[TurnSegment], turn_texts: list[tuple[str, ...]]
    ) -> None:
        """Tokenises what is said."""
        # In flat lists: thousands of small ones wake the garbage collector, which looks at all there is.
        texts, spans = list[str](), list[Sequence[Span]]()
        plain, taught = list[int](), list[int]()
        few = len(segments) < FEW
        for number, (part, turns) in enumerate(zip(parts, turn_texts, strict=True)):
            text, learned = part.copied.write(turns)
            texts.append(text)
            spans.append(learned)
            (taught if learned or few else plain).append(number)
        if plain:
            self._read([segments[n] for n in plain], [texts[n] for n in plain])
        if taught:
            self._learn([segments[n] for n in taught], [texts[n] for n in taught], [spans[n] for n in taught])

    def _read(self, segments: Sequence[Segment], texts: Sequence[str]) -> None:
        """Tokenises what is not learned; the tokenizer need not say where tokens stand."""
        ids, lengths = self.tokens.ids(texts)
        self._part(segments, ids, None, lengths)

    def _learn(
        self, segments: Sequence[Segment], texts: Sequence[str], spans: Sequence[Sequence[Span]]
    ) -> None:
        """Tokenises texts of which the spans, in characters, are learned."""
        ids, lengths, offsets = self.tokens.located(texts)
        owners = np.repeat(np.arange(len(texts)), lengths)
        learned, merged = _learned(spans, owners, offsets)
        taught, unknown = np.zeros(len(texts), bool), np.zeros(len(texts), bool)
        taught[owners[learned]] = True
        if self.tokenizer.unk_token_id is not None:
            unknown[owners[learned & (ids == self.tokenizer.unk_token_id)]] = True
        self._part(segments, ids, np.where(learned, ids, np.int32(IGNORED)), lengths)
        facts = zip(segments, merged.tolist(), taught.tolist(), unknown.tolist(), strict=True)
        for segment, across, some_taught, some_unknown in facts:
            segment.merged, segment.taught, segment.unknown = across, some_taught, some_unknown

    def _part(
        self, segments: Sequence[Segment], ids: np.ndarray, labels: np.ndarray | None, lengths: np.ndarray
    ) -> None:
        """Gives each segment its tokens, which follow each other in `ids`, and images their places."""
        self._tokens += len(ids)
        marked = (ids == self.image_token_id).nonzero()[0].tolist() if self.image_token_id >= 0 else []
        marks = iter([*marked, len(ids)])
        mark, begin = next(marks), 0
        for segment, length in zip(segments, lengths.tolist(), strict=True):
            end, chunks = begin + length, list[tuple[np.ndarray, np.ndarray | None] | None]()
            while mark < end:
                if begin < mark:
                    chunks.append((ids[begin:mark], None if labels is None else labels[begin:mark]))
                chunks.append(None)
                segment.images += 1
                begin, mark = mark + 1, next(marks)
            if begin < end:
                chunks.append((ids[begin:end], None if labels is None else labels[begin:end]))
            segment.chunks, begin = tuple(chunks), end

    def _special(self) -> tuple[list[Segment], list[Segment]]:
        """What the tokenizer adds in front of every text, and behind it."""
        around = self.tokenizer("a", return_special_tokens_mask=True)
        own = [number for number, added in enumerate(around["special_tokens_mask"]) if not added]
        ids = np.array(around["input_ids"], np.int32)
        before, behind = ids[: own[0]], ids[own[-1] + 1 :]
        return [Segment([(before, None)])], [Segment([(behind, None)])]


def _joined(rows: Sequence[Sequence[Segment]], images: Sequence[Sequence[ImageIds]]) -> list[QuickRow | None]:
    """Rows of segments; None for one that shows other images than it has."""
    ids, end = list[np.ndarray](), 0
    learned = list[tuple[int, np.ndarray]]()
    facts: list[tuple[int, int, int, int, bool] | None] = []
    for segments, shown in zip(rows, images, strict=True):
        if sum([segment.images for segment in segments]) != len(shown):
            facts.append(None)
            continue
        begin = image_end = end
        merged, taught, unknown, seen = 0, False, False, iter(shown)
        for segment in segments:
            for chunk in segment.chunks:
                if chunk is None:
                    image = next(seen)
                    image_end = end + image.end
                    tokens = image.ids
                else:
                    tokens, labels = chunk
                    if labels is not None:
                        learned.append((end, labels))
                ids.append(tokens)
                end += len(tokens)
            if segment.taught:
                merged, taught, unknown = merged + segment.merged, True, unknown or segment.unknown
        facts.append((begin, end, merged, image_end - begin, taught and not unknown))
    every, targets = np.concatenate([np.empty(0, np.int32), *ids]), np.full(end, IGNORED, np.int32)
    for begin, labels in learned:
        targets[begin : begin + len(labels)] = labels
    return [
        None if fact is None else QuickRow(every[fact[0] : fact[1]], targets[fact[0] : fact[1]], *fact[2:])
        for fact in facts
    ]


def _learned(
    spans: Sequence[Sequence[Span]], owners: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens are learned, bool (tokens,), and how many spans of each text begin inside of one."""
    solid = offsets[:, 1] > offsets[:, 0]
    learned, merged = np.zeros(len(offsets), bool), np.zeros(len(spans), np.int64)
    for number in range(max(map(len, spans))):
        some = [each[number] if number < len(each) else (-1, -1) for each in spans]
        begins, ends = np.array(some, np.int32)[owners].T
        inside = solid & (offsets[:, 1] > begins) & (offsets[:, 0] < ends)
        learned |= inside
        across = np.zeros(len(spans), bool)
        across[owners[inside & (offsets[:, 0] < begins)]] = True
        merged += across
    return learned, merged
