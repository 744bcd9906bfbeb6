"""The one shape that everything downstream of the readers sees: a conversation about zero or more images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lockadapt.metrics.boxes import Box

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What tells one state of a file from another: its place on the disk, size and last change."""

    device: int
    inode: int
    size: int
    changed_ns: int


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where an image is, without opening it.

    Exactly one of `path` (a file inside the data root, already checked by `safe_join`), `data` (encoded
    bytes), `again` (reads them) or `picture` (a `PIL.Image.Image`) is set. `key` is unique per image, over
    several sources too: the absolute path of a file, or the SHA-256 of bytes or pixels. `stamp` is the state
    in which the file of a row was checked; what is opened later must still be in it. `mirrored` swaps left
    and right once it is opened, and `moment` is where in a video the picture is, in seconds; such images have
    keys of their own.
    """

    key: str
    path: Path | None = None
    data: bytes | None = field(default=None, repr=False, compare=False)
    again: Callable[[], bytes] | None = field(default=None, repr=False, compare=False)
    picture: Any = field(default=None, repr=False, compare=False)
    stamp: FileStamp | None = field(default=None, repr=False, compare=False)
    mirrored: bool = False
    moment: float | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One message.

    Attributes:
        role: who speaks.
        text: all that is said, without its images.
        images: how many images it shows.
        places: where in `text` each of them stands, in characters, ascending; empty: all before the text.
    """

    role: Role
    text: str
    images: int = 0
    places: tuple[int, ...] = ()

    @property
    def segments(self) -> tuple[str, ...]:
        """The pieces of the text between its images, at least one; only a lone one may be empty."""
        cuts = [0, *dict.fromkeys(at for at in self.places if 0 < at < len(self.text)), len(self.text)]
        return tuple(self.text[begin:end] for begin, end in itertools.pairwise(cuts))

    @property
    def gaps(self) -> tuple[int, ...]:
        """How many images stand before each segment, and behind the last."""
        places = self.places or (0,) * self.images
        ends = [0, *itertools.accumulate(len(segment) for segment in self.segments)]
        return tuple(places.count(end) for end in ends) if self.text else (self.images, 0)

    def said(self, segments: Sequence[str]) -> Turn:
        """The same turn with other words between its images.

        Args:
            segments: as many as its own.

        Returns:
            The turn.
        """
        ends = [0, *itertools.accumulate(map(len, segments))]
        places = tuple(end for end, gap in zip(ends, self.gaps, strict=True) for _ in range(gap))
        return replace(self, text="".join(segments), places=places if any(places) else ())


@dataclass(frozen=True, slots=True)
class Sample:
    """Images and the conversation about them, and what is needed to score an answer.

    `turns` holds at least one assistant turn; `sum(turn.images)` equals `len(images)`. `references` are all
    accepted answers or captions (several humans); by default the text of the last assistant turn.
    `where` names the row for messages to the user, e.g. `train.jsonl:17`. `answer_type` is the group that an
    accuracy is broken down by ("yes/no", "number", "other"), `sample_id` the id in the source, if any.
    `boxes` are what a phrase is about: left, top, right and bottom as fractions of the image's sides.
    `negatives` are captions that do not belong to the image. `rejected` is what a preference holds for worse
    than the last answer. `source` is the position of its source among those of its objective.
    """

    images: tuple[ImageRef, ...]
    turns: tuple[Turn, ...]
    where: str
    references: tuple[str, ...] = ()
    answer_type: str | None = None
    sample_id: str | None = None
    boxes: tuple[Box, ...] = ()
    negatives: tuple[str, ...] = ()
    rejected: str = ""
    source: int = 0

    @property
    def answer(self) -> str:
        """The text of the last assistant turn."""
        return next(turn.text for turn in reversed(self.turns) if turn.role == "assistant")

    def messages(self) -> list[dict[str, Any]]:
        """Return the turns as chat-template messages.

        Each is `{"role", "content": [{"type": "image"}…, {"type": "text"}…]}`, its parts in their order.
        """
        return [message(turn) for turn in self.turns]


def message(turn: Turn) -> dict[str, Any]:
    """One turn as a chat-template message whose content is a list: images and texts in their order."""
    content: list[dict[str, Any]] = []
    for images, text in zip(turn.gaps, (*turn.segments, ""), strict=True):
        content += [{"type": "image"} for _ in range(images)]
        if text:
            content.append({"type": "text", "text": text})
    return {"role": turn.role, "content": content}


def question_answer(
    question: str | Turn, answer: str, images: Sequence[ImageRef], where: str, **extra: Any
) -> Sample:
    """A single-turn sample: the images and the question from the user, the answer from the assistant."""
    asked = Turn("user", question, images=len(images)) if isinstance(question, str) else question
    return Sample(images=tuple(images), turns=(asked, Turn("assistant", answer)), where=where, **extra)


def until_each_answer(sample: Sample) -> list[Sample]:
    """A conversation up to each of its answers, in order, with the images that were shown so far."""
    parts = []
    for number, turn in enumerate(sample.turns, start=1):
        if turn.role == "assistant":
            shown = sum(earlier.images for earlier in sample.turns[:number])
            parts.append(replace(sample, turns=sample.turns[:number], images=sample.images[:shown]))
    return parts
