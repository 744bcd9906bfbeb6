"""Where texts are cut, their parts have the tokens of the whole, with every kind of tokenizer."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from lockadapt.data.cuts import Cuts
from lockadapt.data.many_texts import TOGETHER, ManyTexts

CORPUS = [
    "What colour is the ball? red",
    "Is there a (big) square?\nyes",
    "It's 12 o'clock.\n\nnaïve 世界",
] * 9
WORDS = ["red", "a big ball?", "it's", "12", "(x)", "naïve 世界", ".", "o'clock\nred", "-a"]


def byte_level(**given: Any) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, **given)
    made.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return made


def unigram(scheme: str) -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    made.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=90, unk_token="<unk>", special_tokens=["<unk>"])
    )
    return made


def word_piece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=["<unk>"]))
    return made


KINDS = {
    "byte level": byte_level,
    "no pattern": lambda: byte_level(use_regex=False),
    "unigram first": lambda: unigram("first"),
    "unigram always": lambda: unigram("always"),
    "unigram never": lambda: unigram("never"),
    "word pieces": word_piece,
}


def tokenizer_of(kind: str, *added: AddedToken, special: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of a kind with more tokens; `special`: it adds some around a text."""
    made = KINDS[kind]()
    made.add_special_tokens([AddedToken(text, normalized=False) for text in ("</s>", "<image>")])
    made.add_tokens(list(added))
    if special:
        made.add_special_tokens(["<s>"])
        around = [(text, made.token_to_id(text)) for text in ("<s>", "</s>")]
        added_ones = processors.TemplateProcessing("<s> $A </s>", special_tokens=around)
        made.post_processor = processors.Sequence(
            [*([made.post_processor] if made.post_processor else []), added_ones]
        )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("kind", KINDS)
def test_parts_have_the_tokens_of_the_whole(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    cuts, draw = Cuts(tokenizer), random.Random(0)
    for literal in ("</s>", "</s>\n", "\n", "?\n<image>", "<image>", "</s>\nuser: ", "\n\n"):
        places = cuts.places(literal)
        assert bool(places) or "<" not in literal
        for _ in range(40):
            before, behind = draw.choice(WORDS), draw.choice(WORDS)
            for place in places:
                parts = ids(tokenizer, before + literal[:place]) + ids(tokenizer, literal[place:] + behind)
                assert parts == ids(tokenizer, before + literal + behind), (literal, place)


@pytest.mark.parametrize(
    ("kind", "cut"), [("byte level", True), ("unigram first", False), ("unigram always", False)]
)
def test_behind_a_line_break_texts_are_cut_where_a_start_is_no_word_of_its_own(kind: str, cut: bool) -> None:
    assert Cuts(tokenizer_of(kind)).places("\n") == ([1] if cut else [])


def test_a_token_that_reaches_over_a_line_break_forbids_to_cut_there() -> None:
    # It is met in no text that is tried.
    assert Cuts(tokenizer_of("byte level", AddedToken("q\nq", normalized=False))).places("\n") == []


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
    assert Cuts(tokenizer_of("byte level", added)).places("x" + added.content) == []


def test_a_token_that_another_may_reach_over_is_no_place() -> None:
    over = AddedToken("?</s", normalized=False)
    assert Cuts(tokenizer_of("byte level")).places("</s>") == [0]
    assert Cuts(tokenizer_of("byte level", over)).places("</s>") == []


def test_special_tokens_that_are_read_as_text_are_no_place() -> None:
    tokenizer = tokenizer_of("byte level")
    tokenizer.backend_tokenizer.encode_special_tokens = True
    assert Cuts(tokenizer).places("</s>") == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, TOGETHER, 3 * TOGETHER + 1])
def test_many_texts_have_the_tokens_that_each_has(kind: str, count: int) -> None:
    tokenizer, draw = tokenizer_of(kind), random.Random(count)
    texts = [" ".join(draw.choices(WORDS, k=3)) + draw.choice(["", "\n"]) for _ in range(count)]
    many = ManyTexts(tokenizer, Cuts(tokenizer))
    found, lengths, offsets = many.located(texts)
    expected = [tokenizer(text, add_special_tokens=False, return_offsets_mapping=True) for text in texts]
    assert found.tolist() == [token for each in expected for token in each["input_ids"]]
    assert lengths.tolist() == [len(each["input_ids"]) for each in expected]
    assert offsets.tolist() == [list(pair) for each in expected for pair in each["offset_mapping"]]
    assert [some.tolist() for some in many.ids(texts)] == [found.tolist(), lengths.tolist()]


def test_several_texts_are_one_string_where_a_start_is_no_word_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    encode = ManyTexts._encode
    monkeypatch.setattr(
        ManyTexts,
        "_encode",
        lambda self, texts, located: calls.append(len(texts)) or encode(self, texts, located),
    )
    for kind, special, strings in (
        ("byte level", "", 2),
        ("unigram first", "", 16),
        ("byte level", "</s>", 16),
    ):
        tokenizer = tokenizer_of(kind)
        ManyTexts(tokenizer, Cuts(tokenizer)).ids(["red" + special] * 2 * TOGETHER)
        assert calls.pop() == strings, kind
