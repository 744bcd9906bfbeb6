"""Where texts are cut, their parts have the tokens of the whole, with every kind of tokenizer."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizers import AddedToken

from lockadapt.data.batch_tokenizer import TOGETHER, BatchTokenizer
from lockadapt.data.split_points import SplitPoints
from tests.support.tokenizer_kinds import KINDS, WORDS, tokenizer_of


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("kind", KINDS)
def test_parts_have_the_tokens_of_the_whole(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    split_points, draw = SplitPoints(tokenizer), random.Random(0)
    for literal in ("</s>", "</s>\n", "\n", "?\n<image>", "<image>", "</s>\nuser: ", "\n\n"):
        places = split_points.places(literal)
        assert bool(places) or "<" not in literal
        for _ in range(40):
            before, behind = draw.choice(WORDS), draw.choice(WORDS)
            for at in places:
                parts = ids(tokenizer, before + literal[:at]) + ids(tokenizer, literal[at:] + behind)
                assert parts == ids(tokenizer, before + literal + behind), (literal, at)


@pytest.mark.parametrize(
    ("kind", "cut"), [("byte level", True), ("unigram first", False), ("unigram always", False)]
)
def test_behind_a_line_break_texts_are_cut_where_a_start_is_no_word_of_its_own(kind: str, cut: bool) -> None:
    assert SplitPoints(tokenizer_of(kind)).places("\n") == ([1] if cut else [])


def test_a_token_that_reaches_over_a_line_break_forbids_to_cut_there() -> None:
    # It is met in no text that is tried.
    assert SplitPoints(tokenizer_of("byte level", AddedToken("q\nq", normalized=False))).places("\n") == []


@pytest.mark.parametrize(
    "added",
    [
        AddedToken("<a>", lstrip=True, normalized=False),
        AddedToken("<a>", normalized=True),
        AddedToken("<a>", single_word=True, normalized=False),
        AddedToken(" <a>", normalized=False),
    ],
    ids=["strips", "normalised", "single word", "begins with a blank"],
)
def test_tokens_that_depend_on_what_stands_before_them_are_no_place(added: AddedToken) -> None:
    assert SplitPoints(tokenizer_of("byte level", added)).places("x" + added.content) == []


def test_a_token_that_another_may_reach_over_is_no_place() -> None:
    over = AddedToken("?</s", normalized=False)
    assert SplitPoints(tokenizer_of("byte level")).places("</s>") == [0]
    assert SplitPoints(tokenizer_of("byte level", over)).places("</s>") == []


def test_special_tokens_that_are_read_as_text_are_no_place() -> None:
    tokenizer = tokenizer_of("byte level")
    tokenizer.backend_tokenizer.encode_special_tokens = True
    assert SplitPoints(tokenizer).places("</s>") == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, TOGETHER, 3 * TOGETHER + 1])
def test_many_texts_have_the_tokens_that_each_has(kind: str, count: int) -> None:
    tokenizer, draw = tokenizer_of(kind), random.Random(count)
    texts = [" ".join(draw.choices(WORDS, k=3)) + draw.choice(["", "\n"]) for _ in range(count)]
    many = BatchTokenizer(tokenizer, SplitPoints(tokenizer))
    made_ids, lengths, offsets = many.located(texts)
    expected = [tokenizer(text, add_special_tokens=False, return_offsets_mapping=True) for text in texts]
    assert made_ids.tolist() == [token for each in expected for token in each["input_ids"]]
    assert lengths.tolist() == [len(each["input_ids"]) for each in expected]
    assert offsets.tolist() == [list(pair) for each in expected for pair in each["offset_mapping"]]
    assert [some.tolist() for some in many.ids(texts)] == [made_ids.tolist(), lengths.tolist()]


def test_several_texts_are_one_string_where_a_start_is_no_word_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    encode = BatchTokenizer._encode
    monkeypatch.setattr(
        BatchTokenizer,
        "_encode",
        lambda self, texts, located: calls.append(len(texts)) or encode(self, texts, located),
    )
    for kind, special, strings in (
        ("byte level", "", 2),
        ("unigram first", "", 16),
        ("byte level", "</s>", 16),
    ):
        tokenizer = tokenizer_of(kind)
        BatchTokenizer(tokenizer, SplitPoints(tokenizer)).ids(["red" + special] * 2 * TOGETHER)
        assert calls.pop() == strings, kind
