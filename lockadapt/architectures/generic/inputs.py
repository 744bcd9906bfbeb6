"""What a stock processor of any class makes of texts and pictures, asked of itself: every key of it."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lockadapt.architectures.generic.cross_attention import row_key_names, row_keys
from lockadapt.errors import AssemblyError

Sizes = tuple[tuple[int, int], ...]
"""Width and height of each picture of a row, in pixels."""

IDS, MASK = "input_ids", "attention_mask"
PROBES: tuple[Sizes, ...] = (((64, 48),), ((40, 96), (64, 64)))
"""Pictures that a processor is looked at with: one, and two of other shapes."""


@dataclass(frozen=True)
class TokenKey:
    """A key with one number a token, which the token alone decides (`token_type_ids` and the like).

    Attributes:
        values: of the tokens that have another number than text.
        text: the number of every other token.
        dtype: of the processor's tensor.
        answer: the number of the tokens of an answer, where the processor gives them another one.
    """

    values: Mapping[int, int]
    text: int
    dtype: torch.dtype
    answer: int | None = None

    def of(self, input_ids: Tensor, predicting: Tensor | None = None) -> Tensor:
        """The key's value for token ids.

        Args:
            input_ids: (rows, tokens).
            predicting: bool (rows, tokens), True in front of each token that is learned: from the first of
                them on, a row is its answer; None: there is no answer.

        Returns:
            (rows, tokens).
        """
        made = torch.full_like(input_ids, self.text)
        for token, value in self.values.items():
            made[input_ids == token] = value
        if self.answer is not None and predicting is not None:
            made[:, 1:][predicting.cumsum(1)[:, :-1] > 0] = self.answer
        return made.to(self.dtype)


@dataclass
class StockInputs:
    """A stock processor and what was found out about it with blank pictures.

    Args:
        processor: as Transformers loads it.

    Attributes:
        marker: what a chat template writes for an image.
        token: the id that most of an image's tokens have.
        probe_tokens: how many of them the first of `PROBES` takes.
        token_keys: keys with one number a token, by name.
        lead: what the processor puts in front of a text that does not begin with it (Molmo2's bos).
        tail: what the processor puts behind a text that asks for an answer (PaliGemma's line break).
        needs_images: whether each row must show an image.

    Raises:
        AssemblyError: what it makes of a picture cannot be told, or a key is neither of tokens nor of images.
    """

    processor: Any
    marker: str = ""
    token: int = -1
    probe_tokens: int = 0
    token_keys: dict[str, TokenKey] = field(default_factory=dict)
    lead: str = ""
    tail: str = ""
    needs_images: bool = False
    _expansions: dict[Sizes, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.marker = str(self.processor.image_token)
        try:
            first = self.expansions(PROBES[0])[0]
        except Exception as error:
            raise AssemblyError(
                f"{type(self.processor).__name__} makes nothing of {self.marker!r} and a picture: "
                f"{type(error).__name__}: {error}",
                fix="correct the processor's files, or start from another checkpoint",
            ) from error
        self.needs_images = bool(row_key_names(self.processor)) or not self._takes_text()
        tokenizer = self.processor.tokenizer
        ids = tokenizer(first, add_special_tokens=False)[IDS]
        added = Counter(token for token in ids if token in tokenizer.added_tokens_decoder)
        self.token = (added or Counter(ids)).most_common(1)[0][0]
        self.probe_tokens = ids.count(self.token)
        for sizes in PROBES[: 1 + self._takes_two()]:
            self._learn_keys(sizes)

    def expansions(self, sizes: Sizes) -> tuple[str, ...]:
        """Gives the text that stands for each picture of a row, in order; remembered by their sizes.

        Args:
            sizes: (width, height) of each picture, in pixels.

        Returns:
            A text a picture.

        Raises:
            AssemblyError: the processor changes the text around its pictures.
        """
        if sizes not in self._expansions:
            marks = [f"[{number}]" for number in range(len(sizes) + 1)]
            text = self.marker.join(marks)
            spoken = self._spoken(text, [Image.new("RGB", size, "white") for size in sizes])
            expansions = []
            start = spoken.find(marks[0])
            self.lead = spoken[:start] if start > 0 else ""
            for mark, following in itertools.pairwise(marks):
                begin = start + len(mark)
                start = spoken.find(following, begin)
                if start < begin:
                    raise AssemblyError(
                        f"{type(self.processor).__name__} changes the text around its images",
                        fix="start from another checkpoint",
                    )
                expansions.append(spoken[begin:start])
            self.tail = spoken[start + len(marks[-1]) :]
            self._expansions[sizes] = tuple(expansions)
        return self._expansions[sizes]

    def make(
        self, texts: Sequence[str], pictures: Sequence[Sequence[Image.Image]], **settings: Any
    ) -> dict[str, Any]:
        """Makes all that the stock processor does of rows: texts with a marker for each of their pictures.

        Args:
            texts: one a row.
            pictures: of each row; none at all, or some in every row.
            **settings: of the tokenizer.

        Returns:
            What the processor returns, in its order.
        """
        return _call(self.processor, texts, pictures, **settings)

    def image_keys(self, pictures: Sequence[Sequence[Image.Image]]) -> dict[str, Tensor]:
        """Gives all keys that say something of pictures, those of the rows that have some.

        Args:
            pictures: of each row.

        Returns:
            Tensors by key; none without pictures.

        Raises:
            AssemblyError: a key is no tensor.
        """
        rows = [row for row in pictures if row]
        if not rows:
            return {}
        made = self.make([" ".join([self.marker] * len(row)) for row in rows], rows, add_special_tokens=False)
        others = (IDS, MASK, *self.token_keys, *row_key_names(self.processor))
        kept = {name: made[name] for name in made if name not in others}
        if unusual := [name for name, value in kept.items() if not isinstance(value, Tensor)]:
            raise AssemblyError(f"{type(self.processor).__name__} returns {unusual[0]}, which is no tensor")
        return kept

    def row_keys(self, input_ids: Tensor, keys: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gives what the tokens and the images of rows decide together; see `row_keys`."""
        return row_keys(self.processor, input_ids, keys)

    def _spoken(self, text: str, pictures: list[Image.Image]) -> str:
        """The text that the processor really tokenises."""
        processor, spy = copy.copy(self.processor), _Spy(self.processor.tokenizer)
        processor.tokenizer = spy
        _call(processor, [text], [pictures])
        return spy.texts[-1][0]

    def _takes_text(self) -> bool:
        try:
            self.make(["a"], [[]])
        except Exception:
            return False
        return True

    def _takes_two(self) -> bool:
        try:
            self.expansions(PROBES[1])
        except Exception:
            return False
        return True

    def _learn_keys(self, sizes: Sizes) -> None:
        text = " a ".join(["b", *[self.marker] * len(sizes), "c"])
        made = self.make([text], [[Image.new("RGB", size, "white") for size in sizes]])
        ids = made[IDS]
        inside = set(ids.flatten().tolist()) - set(self.processor.tokenizer("b a a c")[IDS])
        for name, value in made.items():
            if name in (IDS, MASK) or not isinstance(value, Tensor) or value.shape[:2] != ids.shape:
                continue
            if name in row_key_names(self.processor):
                continue
            numbers = value.flatten().tolist() if value.shape == ids.shape else []
            pairs = set(zip(ids.flatten().tolist(), numbers, strict=False))
            rest = {number for token, number in pairs if token not in inside}
            if len(pairs) != len(dict(pairs)) or len(rest) != 1:
                raise AssemblyError(
                    f"{name} of {type(self.processor).__name__} is decided by more than the token itself",
                    fix="start from another checkpoint",
                )
            text_value = rest.pop()
            known = self.token_keys.get(name)
            values = {token: number for token, number in pairs if number != text_value}
            self.token_keys[name] = TokenKey(
                {**(known.values if known else {}), **values},
                text_value,
                value.dtype,
                self._answer_value(name, text_value),
            )

    def _answer_value(self, name: str, text_value: int) -> int | None:
        """A key's number for the tokens of an answer, of processors that are given answers apart."""
        if "suffix" not in inspect.signature(type(self.processor).__call__).parameters:
            return None
        picture = Image.new("RGB", PROBES[0][0], "white")
        value = int(self.make([self.marker + "b"], [[picture]], suffix=["c"])[name][0, -1])
        return None if value == text_value else value


def _call(
    processor: Any, texts: Sequence[str], pictures: Sequence[Sequence[Image.Image]], **settings: Any
) -> dict[str, Any]:
    shown = {"images": [list(row) for row in pictures]} if any(pictures) else {}
    made = processor(text=list(texts), **shown, padding=True, return_tensors="pt", **settings)
    return {name: value for name, value in made.items() if name != "labels"}


class _Spy:
    """Stands in for a processor's tokenizer and remembers the texts that it was given."""

    def __init__(self, inner: Any) -> None:
        self.__dict__.update(inner=inner, texts=[])

    def __call__(self, text: Any = None, *arguments: Any, **settings: Any) -> Any:
        self.texts.append(list(text) if isinstance(text, (list, tuple)) else [text])
        return self.inner(text, *arguments, **settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)
