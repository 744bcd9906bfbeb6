"""A SentencePiece model for tokenizers that came from one: llama.cpp cuts texts by its scores, which tokenizer.json lacks."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from lockadapt.errors import AssemblyError

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
PROBES = (
    "What is the colour of the thing in the picture?",
    "a  b   c\n\nThe year 2026, 3.14 and 1000000.",
    "It's he'll, DON'T; (see [this]) {x: 1}\tdone",
    " leading and trailing ",
    "Grüße aus Köln: 你好, мир! 🦙😀 — “quoted” …",
    "unbelievably straightforward internationalisation of misunderstandings",
    "x=1;y=[2,3];print(f'{x!r}')#!/usr/bin/env\n",
)


@dataclass(frozen=True)
class Pieces:
    """A serialised SentencePiece model that cuts texts as the tokenizer does.

    Attributes:
        space_first: whether a text that follows a special token, as a question follows an image, gets a space in front.
        all_bytes: whether there is a piece for every byte. Without, some texts have no pieces, which llama.cpp cannot
            put into words: it stops.
    """

    model: bytes
    space_first: bool
    all_bytes: bool


def came_from_sentencepiece(tokenizer: Any) -> bool:
    """Whether this is BPE over characters with bytes to fall back on, as in Llama 2, Mistral, Gemma and Phi-3."""
    model = _description(tokenizer)["model"]
    return model["type"] == "BPE" and bool(model.get("byte_fallback"))


def sentence_pieces(tokenizer: Any, image_token: str) -> Pieces:
    """Rebuilds the SentencePiece model, a piece's score being the rank of the merge that makes it.

    Args:
        tokenizer: one for which `came_from_sentencepiece` is true.
        image_token: a special token, put before the texts that are compared.

    Raises:
        AssemblyError: the rebuilt model cuts some text otherwise than the tokenizer.
    """
    from sentencepiece import SentencePieceProcessor

    image_id = tokenizer.convert_tokens_to_ids(image_token)
    description, vocabulary = _description(tokenizer), tokenizer.get_vocab()
    for space_first in (True, False):
        pieces = _pieces(description, tokenizer.unk_token, space_first)
        wanted: dict[str, list[int]] = {}
        for text in (part for probe in PROBES for part in (probe, *probe.split())):
            ids = list(tokenizer.encode(image_token + text, add_special_tokens=False))
            if pieces.all_bytes or all(letter in vocabulary for letter in text.replace(" ", SPACE)):
                wanted[text] = ids[1:] if ids[:1] == [image_id] else ids
        processor = SentencePieceProcessor(model_proto=pieces.model)
        different = [text for text, ids in wanted.items() if processor.encode(text) != ids]
        if not different:
            return pieces
    raise AssemblyError(
        f"llama.cpp would cut texts into other tokens than the tokenizer does, for example {different[0]!r}",
        where="tokenizer.json",
        fix="use an LLM whose tokenizer llama.cpp knows",
    )


def _pieces(description: dict[str, Any], unknown: str | None, space_first: bool) -> Pieces:
    from sentencepiece import sentencepiece_model_pb2 as protocol

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
    for rank, merge in enumerate(model["merges"]):
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(first + second, rank)
    kinds = protocol.ModelProto.SentencePiece
    proto = protocol.ModelProto()
    for number in range(max(by_id) + 1):
        piece = by_id.get(number, f"[PAD{number}]")
        # What no merge makes is a single character, or is never reached.
        entry = proto.pieces.add(piece=piece, score=-float(ranks.get(piece, len(ranks) + number)))
        if number not in by_id:
            entry.type = kinds.UNUSED
        elif piece == unknown:
            entry.type = kinds.UNKNOWN
        elif piece in added:
            entry.type = kinds.CONTROL if added[piece]["special"] else kinds.USER_DEFINED
        elif BYTE.fullmatch(piece):
            entry.type = kinds.BYTE
    proto.trainer_spec.model_type = protocol.TrainerSpec.BPE
    all_bytes = sum(entry.type == kinds.BYTE for entry in proto.pieces) == 256
    proto.trainer_spec.byte_fallback = all_bytes
    proto.trainer_spec.vocab_size = len(proto.pieces)
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = space_first
    proto.normalizer_spec.remove_extra_whitespaces = False
    return Pieces(bytes(proto.SerializeToString()), space_first, all_bytes)


def _description(tokenizer: Any) -> dict[str, Any]:
    return dict(json.loads(tokenizer.backend_tokenizer.to_str()))
