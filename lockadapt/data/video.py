"""Frames of videos as pictures: which moments are taken, and one of them decoded, by PyAV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, BinaryIO

from PIL import Image

from lockadapt.errors import DataError, SafetyError, SetupError

_STARTS: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftyp", "mov"),
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (8, b"AVI ", "avi"),
)
"""Where containers have which bytes, and the demuxer. No playlists: those name other files and addresses."""


@dataclass(frozen=True)
class VideoRules:
    """Which frames of a video are shown.

    Attributes:
        frames: how many; with `rate`, at most.
        rate: frames a second of video; None: `frames` over its whole length.
        times: whether the moment of each frame is written before it, as `[12.5s]`.
        max_seconds: longer videos are refused.
        max_pixels: of a frame; larger ones are refused before anything is decoded.
    """

    frames: int = 8
    rate: float | None = None
    times: bool = False
    max_seconds: float = 3600.0
    max_pixels: int = 50_000_000

    def moments(self, seconds: float) -> tuple[float, ...]:
        """Give the moments that are shown: the middles of equal parts of the video.

        Args:
            seconds: length of the video.

        Returns:
            Ascending, in seconds, rounded to milliseconds.
        """
        parts = float(self.frames)
        if self.rate is not None and seconds * self.rate < self.frames:
            parts = max(1.0, round(seconds * self.rate))
        return tuple(round((number + 0.5) * seconds / parts, 3) for number in range(int(parts)))


def video_seconds(file: BinaryIO, rules: VideoRules) -> float:
    """Read the length of a video from its header; nothing is decoded.

    Args:
        file: the open file.
        rules: what is refused.

    Returns:
        Its length in seconds.

    Raises:
        DataError: not a video, or one that does not say how long it is.
        SafetyError: it is longer, or its frames are larger, than the rules allow.
        SetupError: PyAV is not installed.
    """
    with _opened(file) as container:
        stream = _stream(container, rules.max_pixels)
        length = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / 1e6
    if not length:
        raise DataError("does not say how long it is", fix="write it again, e.g. with ffmpeg -c copy")
    if length > rules.max_seconds:
        raise SafetyError(
            f"is {float(length):,.0f} s long, more than {rules.max_seconds:,.0f}",
            fix="cut it, or raise `data.max_video_seconds`",
        )
    return float(length)


def video_frame(file: BinaryIO, moment: float, max_pixels: int) -> Image.Image:
    """Decode the frame that is seen at a moment of a video, upright.

    Decoding starts at the last key frame before it.

    Args:
        file: the open file.
        moment: in seconds from the video's beginning.
        max_pixels: the most pixels, checked before anything is decoded.

    Returns:
        The picture, in mode RGB.

    Raises:
        DataError: not a video, or without any frame.
        SafetyError: its frames have more pixels.
        SetupError: PyAV is not installed.
    """
    with _opened(file) as container:
        stream = _stream(container, max_pixels)
        target = (stream.start_time or 0) + round(moment / stream.time_base)
        container.seek(target, stream=stream, backward=True)
        seen = None
        for frame in container.decode(stream):
            if seen is not None and frame.pts is not None and frame.pts > target:
                break
            seen = frame
        if seen is None:
            raise DataError(f"has no frame at {moment:g} s", fix="fetch it again, or remove its rows")
        picture: Image.Image = seen.to_image()
        turned = int(getattr(seen, "rotation", 0) or 0)
    return picture.rotate(turned, expand=True) if turned else picture


def _opened(file: BinaryIO) -> Any:
    try:
        import av
    except ImportError as error:
        raise SetupError(
            "videos need PyAV, which is not installed", fix='pip install "lockadapt[video]"'
        ) from error
    start = file.read(16)
    file.seek(0)
    for at, mark, name in _STARTS:
        if start[at : at + len(mark)] == mark:
            return av.open(file, mode="r", format=name, metadata_errors="ignore")
    raise DataError(
        "is damaged, or no video of a known format (MP4, MOV, MKV, WebM, AVI)", fix="convert it to MP4"
    )


def _stream(container: Any, max_pixels: int) -> Any:
    streams = container.streams.video
    if not streams:
        raise DataError("holds no video", fix="fetch it again, or remove its rows")
    width, height = streams[0].width, streams[0].height
    if width * height > max_pixels:
        raise SafetyError(
            f"has frames of {width * height:,} pixels ({width} x {height}), more than {max_pixels:,}",
            fix="scale it down, or raise `data.max_pixels`",
        )
    return streams[0]
