"""A SentencePiece model for tokenizers that came from one.

llama.cpp cuts texts by its scores, which tokenizer.json lacks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lockadapt.errors import AssemblyError

LEADING = " a text with a space in front"
SPELLING = (
    "the LLM's vocabulary has no bytes to spell with: llama.cpp stops at a character that it does not hold"
)
MERGES = (
    "the LLM's tokenizer lists fewer merges than llama.cpp does: a rare word may be cut into other tokens"
)
SPACES = "a text that begins with a space is cut into other tokens by llama.cpp"
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
PROBES = (
    "What is the colour of the thing in the picture?",
    "a  b   c\n\nThe year 2026, 3.14 and 1000000.",
    "It's he'll, DON'T; (see [this]) {x: 1}\tdone",
    "trailing spaces  ",
    "Grüße aus Köln: 你好, мир! 🦙😀 — “quoted” …",
    "unbelievably straightforward internationalisation of misunderstandings",
    "x=1;y=[2,3];print(f'{x!r}')#!/usr/bin/env\n",
)


@dataclass(frozen=True)
class Pieces:
    """A serialised SentencePiece model that cuts texts as the tokenizer does.

    Attributes:
        space_first: whether a text that follows a special token, as a question follows an image, gets a space
            in front.
        notes: what the user must know.
    """

    model: bytes
    space_first: bool
    notes: tuple[str, ...]


def came_from_sentencepiece(tokenizer: Any) -> bool:
    """Whether this is BPE over characters with byte fallback, as in Llama 2, Mistral, Gemma, Phi-3."""
    model = _description(tokenizer)["model"]
    return model["type"] == "BPE" and bool(model.get("byte_fallback"))


def sentence_pieces(tokenizer: Any, image_token: str) -> Pieces:
    """Rebuilds the SentencePiece model, a piece's score being the rank of the merge that makes it.

    Args:
        tokenizer: one for which `came_from_sentencepiece` is true.
        image_token: a special token, put before the texts that are compared.

    Returns:
        The model, and what it cannot reproduce.

    Raises:
        AssemblyError: the rebuilt model cuts some text otherwise than the tokenizer.
    """
    from sentencepiece import SentencePieceProcessor

    image_id = tokenizer.convert_tokens_to_ids(image_token)
    description, vocabulary = _description(tokenizer), tokenizer.get_vocab()
    all_bytes = _all_bytes(vocabulary)

    def tokens(text: str) -> list[int]:
        ids = list(tokenizer.encode(image_token + text, add_special_tokens=False))
        return ids[1:] if ids[:1] == [image_id] else ids

    probes = [part for probe in PROBES for part in (probe, *probe.split())]
    wanted = {
        text: tokens(text)
        for text in probes
        if all_bytes or all(letter in vocabulary for letter in text.replace(" ", SPACE))
    }
    different: list[list[str]] = []
    for space_first in (True, False):
        model = _serialised(description, tokenizer.unk_token, space_first)
        processor = SentencePieceProcessor(model_proto=model)
        different.append([text for text, ids in wanted.items() if processor.encode(text) != ids])
        if not different[-1]:
            fine = {
                SPELLING: all_bytes,
                MERGES: _all_merges(description["model"]),
                SPACES: processor.encode(LEADING) == tokens(LEADING),
            }
            return Pieces(model, space_first, tuple(note for note, holds in fine.items() if not holds))
    raise AssemblyError(
        "llama.cpp would cut texts into other tokens than the tokenizer does, "
        f"for example {min(different, key=len)[0]!r}",
        where="tokenizer.json",
        fix="use an LLM whose tokenizer llama.cpp knows",
    )


def _serialised(description: dict[str, Any], unknown: str | None, space_first: bool) -> bytes:
    import sentencepiece.sentencepiece_model_pb2 as generated

    protocol: Any = generated  # made by protoc at import, so nobody can check its names

    model = description["model"]
    added = {token["content"]: token for token in description["added_tokens"]}
    ids = {**model["vocab"], **{content: token["id"] for content, token in added.items()}}
    by_id = {number: piece for piece, number in ids.items()}
    unknown = model.get("unk_token") or unknown
    if unknown not in ids:
        raise AssemblyError(
            "llama.cpp needs a token for what is unknown, and the tokenizer has none",
            where="tokenizer.json",
            fix="use an LLM whose tokenizer llama.cpp knows",
        )
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(_merges(model)):
        ranks.setdefault("".join(pair), rank)
    kinds = protocol.ModelProto.SentencePiece
    proto, all_bytes = protocol.ModelProto(), _all_bytes(ids)
    for number in range(max(by_id) + 1):
        piece = by_id.get(number, f"[PAD{number}]")
        # What no merge makes is a single character, or is never reached.
        entry = proto.pieces.add(piece=piece, score=-float(ranks.get(piece, len(ranks) + number)))
        if number not in by_id:
            entry.type = kinds.UNUSED
        elif piece == unknown:
            entry.type = kinds.UNKNOWN
        elif all_bytes and BYTE.fullmatch(piece):
            entry.type = kinds.BYTE
        elif piece in added:
            entry.type = kinds.CONTROL if added[piece]["special"] else kinds.USER_DEFINED
    proto.trainer_spec.model_type = protocol.TrainerSpec.BPE
    proto.trainer_spec.byte_fallback = all_bytes
    proto.trainer_spec.vocab_size = len(proto.pieces)
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = space_first
    proto.normalizer_spec.remove_extra_whitespaces = False
    return bytes(proto.SerializeToString())


def _all_bytes(vocabulary: Iterable[str]) -> bool:
    return sum(BYTE.fullmatch(piece) is not None for piece in vocabulary) == 256


def _merges(model: dict[str, Any]) -> list[tuple[str, ...]]:
    return [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]


def _all_merges(model: dict[str, Any]) -> bool:
    """Whether every two pieces that make a third are joined, as llama.cpp will."""
    pairs, vocabulary = set(_merges(model)), model["vocab"]
    return all(
        (piece[:cut], piece[cut:]) in pairs
        for piece in {"".join(pair) for pair in pairs}
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    )


def _description(tokenizer: Any) -> dict[str, Any]:
    return dict(json.loads(tokenizer.backend_tokenizer.to_str()))
