"""Videos in rows: each becomes the span of its frames, with their moments between them if that is wanted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lockadapt.data.images import opened
from lockadapt.data.problems import quote
from lockadapt.data.readers.columns import RowRules
from lockadapt.data.sample import ImageRef
from lockadapt.data.video import video_seconds
from lockadapt.errors import DataError, LockadaptError, memory_ran_out

Piece = str | tuple[ImageRef | None]
"""A text, or a place for an image: with the image, or None for the row's next one."""


def clips(value: Any, rules: RowRules, where: str) -> list[list[Piece]]:
    """Turn the videos of a cell into spans of frames.

    Args:
        value: a file name or a list of them, unchecked.
        rules: the folder of files, and which frames are taken.
        where: the row's place, for messages.

    Returns:
        A span a video.

    Raises:
        DataError: not a file name, or no video.
        SafetyError: it lies outside the data root, or is too long or too large.
        SetupError: PyAV is not installed.
    """
    values = value if isinstance(value, (list, tuple)) else [] if value in (None, "") else [value]
    return [_clip(name, rules, where) for name in values]


def _clip(name: Any, rules: RowRules, where: str) -> list[Piece]:
    if not isinstance(name, str) or not name:
        raise DataError(
            f"a video is {quote(name)}, not a file name", where=where, fix="write the file name of the video"
        )
    file = rules.pictures.file(name, where)
    if file.key not in rules.seconds:
        rules.seconds[file.key] = _seconds(file, name, rules, where)
    span: list[Piece] = []
    for moment in rules.video.moments(rules.seconds[file.key]):
        if rules.video.times:
            span.append(f"[{moment:.1f}s]")
        span.append((rules.pictures.frame(replace(file, key=f"{file.key} at {moment:g} s", moment=moment)),))
    return span


def _seconds(file: ImageRef, name: str, rules: RowRules, where: str) -> float:
    try:
        with opened(file) as handle:
            return video_seconds(handle, rules.video)
    except LockadaptError as error:
        raise type(error)(f"video {quote(name)} {error.message}", where=where, fix=error.fix) from error
    except Exception as error:  # a demuxer raises nearly anything on damaged files
        if memory_ran_out(error):
            raise
        raise DataError(
            f"video {quote(name)} is damaged or cut off ({type(error).__name__})",
            where=where,
            fix="fetch it again, or remove its rows",
        ) from error
