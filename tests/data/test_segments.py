"""Conversations in segments have the tokens, labels and images of the whole, whatever is learned of them."""

from __future__ import annotations

import random

import numpy as np
import pytest

from lockadapt.data.batch_tokenizer import BatchTokenizer
from lockadapt.data.dialogue import Copied
from lockadapt.data.image_ids import ImageIds
from lockadapt.data.quick_row import IGNORED, QuickRow
from lockadapt.data.segments import SegmentTokenizer
from tests.support.tokenizer_kinds import KINDS, WORDS, tokenizer_of

LITERALS = ["", "\n", "</s>\n", "user: ", "ab</s>cd\n", "</s>\n<image>", "<image>x: ", "</s>a</s>"]


def drawn(draw: random.Random) -> Copied:
    """What a template may write around one to three turns."""
    literals = tuple(draw.choice(LITERALS) for _ in range(draw.randint(2, 4)))
    turns = draw.sample(range(len(literals) - 1), draw.randint(1, len(literals) - 1))
    spans = [(draw.randint(0, len(literals[t])), draw.randint(0, len(literals[t + 1]))) for t in turns]
    return Copied(literals, tuple((turn, *span) for turn, span in sorted(zip(turns, spans, strict=True))))


def whole(
    segments: SegmentTokenizer, copied: Copied, texts: tuple[str, ...], image: ImageIds, special: bool
) -> QuickRow:
    """The row, tokenised at once."""
    text, spans = copied.write(texts)
    made = segments.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    ids, labels, merged, image_end = list[int](), list[int](), 0, 0
    for token, (begin, end) in zip(made["input_ids"], made["offset_mapping"], strict=True):
        inside = any(end > begin and end > start and begin < stop for start, stop in spans)
        if token == segments.image_token_id:
            image_end = len(ids) + image.end
            ids += image.ids.tolist()
            labels += [IGNORED] * len(image.ids)
            continue
        ids.append(token)
        labels.append(token if inside else IGNORED)
    for start, stop in spans:
        merged += any(end > start > begin and begin < stop for begin, end in made["offset_mapping"])
    return QuickRow(np.array(ids, np.int32), np.array(labels, np.int32), merged, image_end, True)


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_whole(kind: str, special: bool) -> None:
    tokenizer, draw = tokenizer_of(kind, special=special), random.Random(0)
    segments = SegmentTokenizer(tokenizer, tokenizer.convert_tokens_to_ids("<image>"))
    image = ImageIds(np.array([3, segments.image_token_id, segments.image_token_id, 4], np.int32), 3)
    for _ in range(60):
        copied = drawn(draw)
        texts = [tuple(draw.choices(WORDS, k=len(copied.literals) - 1)) for _ in range(draw.choice([1, 30]))]
        images = [[image] * "".join(copied.literals).count("<image>")] * len(texts)
        parts = segments.parts(copied, special)
        rows = segments.rows([parts] * len(texts), texts, images)
        for row, turns in zip(rows, texts, strict=True):
            assert row is not None
            assert row.equals(whole(segments, copied, turns, image, special)), (copied, turns)


def test_a_row_with_other_images_than_it_shows_is_none() -> None:
    tokenizer = tokenizer_of("byte level")
    segments = SegmentTokenizer(tokenizer, tokenizer.convert_tokens_to_ids("<image>"))
    image = ImageIds(np.array([segments.image_token_id], np.int32), 1)
    parts = segments.parts(Copied(("<image>", "</s>"), ((0, 0, 4),)), False)
    rows = segments.rows([parts] * 3, [("red",), ("a",), ("b",)], [[image], [], [image, image]])
    assert [row is None for row in rows] == [False, True, True]


def test_what_failed_to_be_tokenised_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of("byte level")
    segments = SegmentTokenizer(tokenizer, -1)
    parts = segments.parts(Copied(("", "</s>", "</s>"), ((1, 0, 4),)), False)
    segments.rows([parts], [("red?", "yes")], [[]])
    with monkeypatch.context() as patch:
        patch.setattr(BatchTokenizer, "_encode", lambda self, texts, located: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            segments.rows([parts], [("blue?", "yes")], [[]])
    (row,) = segments.rows([parts], [("blue?", "yes")], [[]])
    assert row is not None
    assert row.input_ids.tolist() == tokenizer("blue?</s>yes</s>", add_special_tokens=False)["input_ids"]
