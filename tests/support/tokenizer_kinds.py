"""Small tokenizers of every kind that LLMs have."""

from __future__ import annotations

from typing import Any

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
