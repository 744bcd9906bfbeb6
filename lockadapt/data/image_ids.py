"""The token ids that stand for an image, where they are the same whatever stands beside it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False, slots=True)
class ImageIds:
    """What stands for an image.

    Attributes:
        ids: int32 (tokens,).
        end: the place behind the last image token; what frames the image may stand behind it.
    """

    ids: np.ndarray
    end: int


class ImageTokens:
    """Tokenises what stands for images, each text once.

    Args:
        tokenizer: a fast one.
        marker: the image token; empty: images stand beside the text.
        token_id: its id.
    """

    def __init__(self, tokenizer: Any, marker: str, token_id: int) -> None:
        self.tokenizer, self.marker, self.token_id = tokenizer, marker, token_id
        self._single: dict[str, np.ndarray | None] = {}
        self._rows: dict[tuple[str, ...], tuple[ImageIds, ...] | None] = {}

    def of(self, texts: tuple[str, ...]) -> tuple[ImageIds, ...] | None:
        """Tokenise what stands for the images of a row.

        Args:
            texts: one an image.

        Returns:
            Their ids; None: those of one depend on what stands beside it.
        """
        if texts not in self._rows:
            ids = [self._ids(text) for text in texts]
            known = [self._image(some) for some in ids if some is not None]
            self._rows[texts] = tuple(known) if len(known) == len(texts) else None
        return self._rows[texts]

    def _image(self, ids: np.ndarray) -> ImageIds:
        return ImageIds(ids, max(np.flatnonzero(ids == self.token_id).tolist(), default=-1) + 1)

    def _ids(self, expanded: str) -> np.ndarray | None:
        if expanded not in self._single:
            self._single[expanded] = self._tried(expanded)
        return self._single[expanded]

    def _tried(self, expanded: str) -> np.ndarray | None:
        count, rest = divmod(len(expanded), len(self.marker))
        if count > 3 and not rest and expanded == self.marker * count:
            # Three follow each other as any number does.
            few = self._ids(self.marker * 3)
            return None if few is None else np.full(count, self.token_id, np.int32)

        def ids(text: str) -> list[int]:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

        alone = ids(expanded)
        for before, behind in itertools.product(("", "a", "a ", "a\n", ">"), ("", "b", " b", "\nb", "<")):
            single = ids(before + self.marker + behind)
            if single.count(self.token_id) != 1:
                return None
            at = single.index(self.token_id)
            if [*single[:at], *alone, *single[at + 1 :]] != ids(before + expanded + behind):
                return None
        return np.array(alone, np.int32)
