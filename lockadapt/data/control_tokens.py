"""Text of rows stays text: control tokens that it spells out become plain pieces, or the row is refused."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lockadapt.errors import DataError


@dataclass(frozen=True)
class ControlTokens:
    """The tokens of a tokenizer that mean something else than their text.

    Attributes:
        tokenizer: a fast one.
        tokens: what no text may forge.
    """

    tokenizer: Any
    tokens: tuple[str, ...]

    def spelled(self, text: str, spans: Sequence[tuple[int, int]] | None = None) -> list[tuple[int, str]]:
        """Where parts of a text (default: all of it) spell control tokens out, and which."""
        spelled = []
        for begin, end in spans if spans is not None else [(0, len(text))]:
            while match := self._pattern.search(text, begin, end):
                spelled.append((match.start(), match[0]))
                begin = match.start() + 1
        return spelled

    def refuse(self, text: str, where: str) -> None:
        """Refuse control tokens in a text that a stock processor tokenises itself.

        Args:
            text: the text of the row.
            where: the row's place, for messages.

        Raises:
            DataError: the text spells a control token out.
        """
        if spelled := self.spelled(text):
            raise _refused(spelled[0][1], where)

    def split(
        self,
        text: str,
        spelled: Sequence[tuple[int, str]],
        spans: Sequence[tuple[int, int]],
        special: bool,
        where: str,
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokenise a text whose spelled tokens are made of plain pieces.

        The text is cut behind the first character of each, so that the tokenizer does not see it whole.

        Args:
            text: all of it.
            spelled: from `spelled`.
            spans: the parts of the text that came from the row.
            special: whether the tokenizer adds its special tokens around the text.
            where: the row, for the error.

        Returns:
            Token ids, and the (begin, end) of each in characters of the text.

        Raises:
            DataError: the pieces are not those of the text, as where a tokenizer puts a blank before every
                part.
        """
        cuts = [0, *(begin + 1 for begin, _ in spelled), len(text)]
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for begin, end in itertools.pairwise(cuts):
            part = self.tokenizer(text[begin:end], add_special_tokens=False, return_offsets_mapping=True)
            ids += part["input_ids"]
            offsets += [(begin + first, begin + last) for first, last in part["offset_mapping"]]
        forged = any(
            begin <= first < end
            for token, (first, last) in zip(ids, offsets, strict=True)
            if token in self._ids and last > first
            for begin, end in spans
        )
        if (
            forged
            or _squeezed(self._decode(ids)) != _squeezed(text)
            or self._decode(ids).count(" ") != self._whole(text).count(" ")
        ):
            raise _refused(spelled[0][1], where)
        if special:
            around = self.tokenizer("a", return_offsets_mapping=True)
            before = next(i for i, (first, last) in enumerate(around["offset_mapping"]) if last > first)
            ids = [*around["input_ids"][:before], *ids]
            offsets = [*[(0, 0)] * before, *offsets]
        return ids, offsets

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def _whole(self, text: str) -> str:
        return self._decode(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.tokens)) or r"(?!)")

    @cached_property
    def _ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.convert_tokens_to_ids(list(self.tokens)))


def _refused(token: str, where: str) -> DataError:
    return DataError(
        f"the text spells the control token {token!r} out, and it cannot be taken as plain text",
        where=where,
        fix="remove it, or set data.allow_special_tokens: true to let rows write control tokens",
    )


def _squeezed(text: str) -> str:
    return "".join(text.split())
