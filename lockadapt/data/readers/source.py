"""Describes a data source to a reader in plain values: which files, which columns, what to ask."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lockadapt.data.boxes import BoxRules
from lockadapt.data.paths import DataRoot
from lockadapt.data.problems import BadRows
from lockadapt.data.video import VideoRules
from lockadapt.errors import DataError, RecipeError

KINDS = ("caption", "vqa", "dialogue", "grounding", "preference", "text")

FIELDS = (
    *("image", "images", "question", "answer", "answers", "caption", "captions"),
    *("messages", "prompt", "completion", "answer_type", "id", "text", "phrase", "box", "boxes"),
    *("video", "negatives", "chosen", "rejected"),
)
"""The sample fields that `columns` may map."""

CAPTION_PROMPT = "Describe the image."
QUESTION_MARK = "{question}"
GROUNDING_PROMPT = "Locate: {phrase}"
PHRASE_MARK = "{phrase}"
IMAGE_MARK = "<image>"
VIDEO_MARK = "<video>"


@dataclass(frozen=True)
class Source:
    """One set of rows and the images that they name; the fields mean what they mean in a recipe.

    `kind` is one of `KINDS`. `path` and `annotations` are files or folders (`path` of the datasets reader:
    also a Hub id), `images` the folder that image names are relative to (default: the folder of `path`).
    `columns` maps sample fields (`FIELDS`) to column names, or to positions in rows that are lists. `limit`
    counts rows: lines, questions, or the images of COCO. With `expand`, an image with several captions
    becomes one sample each, as training wants it; without, one sample, as scoring wants it. Either way
    `references` holds all of them. `bad_rows` lets rows that cannot be used be left out. `boxes` says how the
    boxes of grounding rows are given and written, `video` which frames of videos are shown.
    """

    path: str | Path
    kind: str
    images: str | Path | None = None
    annotations: str | Path | None = None
    split: str | None = None
    columns: Mapping[str, str | int] = field(default_factory=dict)
    image_name: str | None = None
    limit: int | None = None
    prompt: str | None = None
    expand: bool = True
    bad_rows: BadRows | None = None
    boxes: BoxRules = field(default_factory=BoxRules)
    video: VideoRules = field(default_factory=VideoRules)

    def check(self) -> None:
        """Check what can be wrong before any row is read.

        Raises:
            RecipeError: an unknown kind or sample field, a negative position, or a prompt that cannot be
                used.
        """
        if self.kind not in KINDS:
            raise RecipeError(
                f"there is no kind {self.kind!r}", where="kind", fix=did_you_mean(self.kind, KINDS)
            )
        for name, column in self.columns.items():
            if name not in FIELDS:
                raise RecipeError(
                    f"there is no sample field {name!r}",
                    where=f"columns.{name}",
                    fix=did_you_mean(name, FIELDS),
                )
            if isinstance(column, int) and column < 0:
                raise RecipeError("positions count from 0", where=f"columns.{name}", fix="write 0 or more")
        if self.prompt is None:
            return
        if self.kind in ("dialogue", "preference", "text"):
            raise RecipeError(
                f"a {self.kind} has its own words, a prompt has no place in it",
                where="prompt",
                fix="remove `prompt`, or choose the kind caption or vqa",
            )
        mark = {"vqa": QUESTION_MARK, "grounding": PHRASE_MARK}.get(self.kind, "")
        if mark not in self.prompt:
            raise RecipeError(
                f"the prompt of a {self.kind} objective must hold {mark}",
                where="prompt",
                fix=f"for example `prompt: '{mark} Answer in short.'`",
            )
        if not self.prompt.strip() or IMAGE_MARK in self.prompt:
            raise RecipeError(
                f"the prompt is empty or holds {IMAGE_MARK}",
                where="prompt",
                fix="write text only; images are put before it",
            )

    def check_fixed(self, format: str, *kinds: str) -> None:
        """Check that a format with samples of few kinds, in columns of its own, is asked for no other.

        Args:
            format: the format's name, for messages.
            *kinds: the kinds of its samples.

        Raises:
            RecipeError: it is.
        """
        if self.kind not in kinds:
            raise RecipeError(
                f"the format {format} holds rows of the kind {' or '.join(kinds)}, not {self.kind}",
                where="format",
                fix=f"give the objective `kind: {kinds[0]}`, or choose another format",
            )
        if self.columns:
            raise RecipeError(
                f"the format {format} has its own columns", where="columns", fix="remove `columns`"
            )

    def image_root(self, default: Path) -> DataRoot:
        """Return the folder that image names are relative to: `images` if given, else `default`.

        Args:
            default: the folder of the rows.

        Returns:
            The root, which nothing may leave.

        Raises:
            DataError: `images` is no folder.
        """
        folder = Path(self.images) if self.images is not None else default
        if self.images is not None and not folder.is_dir():
            raise DataError("no such folder of images", where=str(folder), fix="correct `images`")
        return DataRoot(folder)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A fix for a misspelt name: the nearest known one, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else "one of: " + ", ".join(sorted(known))
