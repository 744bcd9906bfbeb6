"""Tokenises many short texts, several in one string where an added token can stand between them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from lockadapt.data.split_points import TRIED, SplitPoints

TOGETHER = 8
"""Texts in one string; a call for every text takes a fifth longer, and longer strings save no more."""


class BatchTokenizer:
    """A tokenizer, without its special tokens, for texts in which no special token stands.

    Args:
        tokenizer: a fast one.
        split_points: of it.
    """

    def __init__(self, tokenizer: Any, split_points: SplitPoints) -> None:
        self.tokenizer, self.split_points = tokenizer, split_points

    def ids(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokenise texts.

        Args:
            texts: any number.

        Returns:
            Their ids one behind another, int32 (tokens,), and how many each has, (texts,).
        """
        ids, lengths, _ = self._made(texts, located=False)
        return ids, lengths

    def located(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokenise texts, and say where tokens stand in them.

        Args:
            texts: any number.

        Returns:
            As `ids`, and begin and end of each token in characters of its text, int32 (tokens, 2).
        """
        return self._made(texts, located=True)

    def _made(self, texts: Sequence[str], located: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        parted = self._parting if len(texts) > TOGETHER else None
        if parted is not None and not any(parted[0] in text for text in texts):
            return self._together(texts, located, *parted)
        made = self._encode(texts, located)
        lengths = np.array([len(item) for item in made], np.int64)
        return _ids(made), lengths, _offsets(made) if located else np.empty((0, 2), np.int32)

    def _together(
        self, texts: Sequence[str], located: bool, token: str, token_id: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Several texts at a time, each with a token behind it."""
        groups = [texts[begin : begin + TOGETHER] for begin in range(0, len(texts), TOGETHER)]
        made = self._encode([token.join((*group, "")) for group in groups], located)
        ids = _ids(made)
        kept = ids != token_id
        stops = (~kept).nonzero()[0]
        lengths = stops - np.concatenate([[0], stops[:-1] + 1])
        if not located:
            return ids[kept], lengths, np.empty((0, 2), np.int32)
        ends = np.cumsum([len(text) + len(token) for text in texts])
        begins = np.concatenate([[0], ends[:-1]])
        begins -= np.repeat(begins[::TOGETHER], [len(group) for group in groups])  # each string begins at 0
        return ids[kept], lengths, _offsets(made)[kept] - np.repeat(begins, lengths).astype(np.int32)[:, None]

    @cached_property
    def _parting(self) -> tuple[str, int] | None:
        """A token and its id; the tokens of a text are the same behind it as at the start."""
        for token in self.tokenizer.all_special_tokens:
            token_id = int(self.tokenizer.convert_tokens_to_ids(token))
            if self.split_points.parts(token) and all(
                self._one(token + text) == [token_id, *self._one(text)] for text in TRIED
            ):
                return token, token_id
        return None

    def _one(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _encode(self, texts: Sequence[str], located: bool) -> list[Any]:
        backend = self.tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        encode = backend.encode_batch if located else backend.encode_batch_fast
        return list(encode(texts, add_special_tokens=False))


def _ids(made: Sequence[Any]) -> np.ndarray:
    return np.fromiter(itertools.chain.from_iterable(item.ids for item in made), np.int32)


def _offsets(made: Sequence[Any]) -> np.ndarray:
    pairs = itertools.chain.from_iterable(item.offsets for item in made)
    return np.fromiter(itertools.chain.from_iterable(pairs), np.int32).reshape(-1, 2)
