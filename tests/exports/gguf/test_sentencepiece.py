"""The rebuilt SentencePiece model cuts texts as the tokenizer does, or is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from lockadapt.errors import AssemblyError
from lockadapt.exports.gguf.sentencepiece import (
    MERGES,
    SPACES,
    SPELLING,
    came_from_sentencepiece,
    sentence_pieces,
)
from tests.support.gguf import SPACE, spelling_tokenizer
from tests.support.tiny import SENTENCES, tiny_tokenizer

sentencepiece = pytest.importorskip(
    "sentencepiece", reason="needs sentencepiece (pip install 'lockadapt[gguf]')"
)
pytest.importorskip("google.protobuf", reason="needs protobuf (pip install 'lockadapt[gguf]')")
IMAGE = "<image>"


def with_image(tokenizer: hf.PreTrainedTokenizerFast) -> Any:
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    return tokenizer


TOKENIZERS = {first: with_image(spelling_tokenizer(first=first)) for first in ("always", "first", "never")}


def test_kinds_are_told_apart() -> None:
    assert came_from_sentencepiece(spelling_tokenizer())
    assert not came_from_sentencepiece(tiny_tokenizer())


@pytest.mark.parametrize("first", list(TOKENIZERS))
@given(text=st.one_of(st.text(), st.lists(st.sampled_from(" ".join(SENTENCES).split(" "))).map(" ".join)))
@settings(max_examples=200, deadline=None)
def test_any_text_is_cut_alike(first: str, text: str) -> None:
    tokenizer = TOKENIZERS[first]
    pieces = sentence_pieces(tokenizer, IMAGE)
    # The space comes behind an image only if it always comes.
    assert pieces.space_first == (first == "always")
    # Metaspace does not put a second space before one, llama.cpp does.
    assert pieces.notes == ((SPACES,) if first == "always" else ())
    wanted = tokenizer.encode(IMAGE + text, add_special_tokens=False)[1:]
    special = {"<unk>", "<s>", "</s>", IMAGE, "\0"}
    if not any(control in text for control in special) and not (
        pieces.notes and text[:1] in (" ", SPACE, "")
    ):
        assert sentencepiece.SentencePieceProcessor(model_proto=pieces.model).encode(text) == wanted


def test_special_tokens_keep_their_kind() -> None:
    tokenizer = spelling_tokenizer()
    with_image(tokenizer).add_tokens(["plainly"])
    processor = sentencepiece.SentencePieceProcessor(model_proto=sentence_pieces(tokenizer, IMAGE).model)
    ids = tokenizer.get_vocab()
    assert processor.vocab_size() == max(ids.values()) + 1
    assert all(processor.IdToPiece(number) == piece for piece, number in ids.items())
    assert processor.IsControl(ids[IMAGE])
    assert processor.IsControl(ids["<s>"])
    assert processor.IsUnknown(ids["<unk>"])
    assert processor.IsByte(ids["<0x41>"])
    assert processor.encode("plainly")[-1:] == [ids["plainly"]]


def changed(change: Any) -> Any:
    description = json.loads(spelling_tokenizer().backend_tokenizer.to_str())
    change(description["model"])
    raw = Tokenizer.from_str(json.dumps(description))
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def test_merges_that_scores_cannot_say_are_refused() -> None:
    # Without the pairs that make longer pieces the tokenizer stops earlier than scores would.
    def fewer(model: dict[str, Any]) -> None:
        model["merges"] = model["merges"][:2]

    with pytest.raises(AssemblyError, match="would cut texts into other tokens"):
        sentence_pieces(with_image(changed(fewer)), IMAGE)


def test_fewer_merges_that_show_nowhere_are_told() -> None:
    # A pair that no compared text brings together.
    def one_less(model: dict[str, Any]) -> None:
        twice = [
            pair for pair in model["merges"] if sum("".join(p) == "".join(pair) for p in model["merges"]) > 1
        ]
        model["merges"].remove(twice[-1])

    assert MERGES in sentence_pieces(with_image(changed(one_less)), IMAGE).notes


def test_vocabulary_without_bytes_is_told() -> None:
    def without(model: dict[str, Any]) -> None:
        model["vocab"].pop("<0x00>")
        model["vocab"]["<other>"] = 3

    assert SPELLING in sentence_pieces(with_image(changed(without)), IMAGE).notes
