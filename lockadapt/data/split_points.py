"""Where a text can be cut so that its parts have the tokens that they have in the whole."""

from __future__ import annotations

import itertools
import re
from functools import cached_property
from typing import Any

from tokenizers import AddedToken

TRIED = ("a", "Z", "1", ".", "(", "'", "-", "é", "世", "\U0001f600")
"""What is tried beside a line break: letters, digits and signs, of one byte and of several."""

_OVER_LINES = re.compile(r"[\nĊ][^\s▁ĊĠĉč]")
"""A line break and what is no blank behind it, within a token; `Ċ` is how tokens of bytes show it."""


class SplitPoints:
    """Places where a tokenizer parts every text.

    Tokenizers look for added tokens first, and tokenise what stands between them by itself. In front of one
    a text may be cut, unless the token takes what stands there or another one may reach over the place. A
    text may be cut behind a line break if no token reaches over it and both sides stay as they are where it
    is tried.

    Args:
        tokenizer: a fast one.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        backend = tokenizer.backend_tokenizer
        added: list[AddedToken] = list(backend.get_added_tokens_decoder().values())
        # Whether a single word is one depends on the letter beside it; and tokens may be set to be text.
        parted = not backend.encode_special_tokens and not any(token.single_word for token in added)
        self._added = {token.content: token for token in added if token.content} if parted else {}
        self._sure, self._lines = dict[str, bool](), dict[str, bool]()

    def places(self, text: str) -> list[int]:
        """Find the places in a text that are sure, whatever stands before it, and what is no blank behind it.

        Args:
            text: any.

        Returns:
            Where parts may begin, in order.
        """
        line = [len(text)] if text.endswith("\n") and self._ends_line(text) else []
        return self._tokens(text) + line

    def parts(self, token: str) -> bool:
        """Whether a text can be cut in front of a token and behind it, where it takes nothing with it."""
        return token in self._added and self._is_sure(token) and not self._added[token].rstrip

    def _tokens(self, text: str) -> list[int]:
        within = sorted((content for content in self._added if content in text), key=len, reverse=True)
        matches = re.finditer("|".join(map(re.escape, within)) or "(?!)", text)
        return [match.start() for match in matches if self._is_sure(match[0])]

    def _is_sure(self, content: str) -> bool:
        if content not in self._sure:
            token = self._added[content]
            self._sure[content] = not (
                token.lstrip
                or token.normalized
                or content[0].isspace()
                or any(_reaches_over(other, content) for other in self._added)
            )
        return self._sure[content]

    def _ends_line(self, text: str) -> bool:
        """Whether what stands before a text that ends with a line break leaves the tokens behind it alone."""
        if text not in self._lines:
            apart = all(
                self._ids(before + text) + self._ids(behind) == self._ids(before + text + behind)
                for before, behind in itertools.product(TRIED, TRIED)
            )
            self._lines[text] = apart and not self._some_reach_over_lines
        return self._lines[text]

    @cached_property
    def _some_reach_over_lines(self) -> bool:
        return any(map(_OVER_LINES.search, self.tokenizer.get_vocab()))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _reaches_over(other: str, content: str) -> bool:
    """Whether a token may begin before another one and end within or behind it."""
    ends = (other[begin:] for begin in range(1, len(other)))
    return any(end.startswith(content) or content.startswith(end) for end in ends)
