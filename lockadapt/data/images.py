"""Opens pictures safely and uniformly: any file becomes 8-bit RGB, or a typed error."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lockadapt.data.paths import stamp_of
from lockadapt.data.problems import quote
from lockadapt.data.sample import ImageRef
from lockadapt.data.video import video_frame
from lockadapt.errors import DataError, LockadaptError, SafetyError, memory_ran_out

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""What is opened. Not all that Pillow knows: EPS runs Ghostscript, and rare parsers are rarely tested."""

_TILE_WIDTH, _TILE_LENGTH, _ORIENTATION = 322, 323, 274
_SIDEWAYS = (5, 6, 7, 8)
"""Values of the EXIF orientation that turn a picture by a quarter."""

_HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")

# `warnings.catch_warnings` changes a global, and pictures are opened from several threads. Only headers are
# read under this lock; decoding happens outside.
_LOCK = threading.Lock()


def open_image(ref: ImageRef, max_pixels: int, where: str | None = None) -> Image.Image:
    """Decode the picture of `ref` in mode RGB, upright by its EXIF orientation.

    Transparency of any kind is composited on white. 16-bit grey is divided by 257. 32-bit and float grey are
    taken as 0..1 (float only), 0..255 (float only) or 0..65535 where all values lie in it, else stretched
    from minimum to maximum. Of an animation the first frame is taken. ICC profiles are not applied.
    A `mirrored` picture is mirrored last. Of a video, the frame at its `moment` is taken.

    Args:
        ref: path, bytes or picture.
        max_pixels: the most pixels, checked on the header before anything is decoded.
        where: the row, for messages; default: the key of `ref`.

    Returns:
        The picture, in mode RGB.

    Raises:
        DataError: missing, not an image of `FORMATS`, cut off, damaged, or with values that are no numbers.
        SafetyError: more than `max_pixels` pixels.
    """
    picture = _read(ref, where, max_pixels, lambda opened_picture: _decoded(opened_picture, max_pixels))
    return ImageOps.mirror(picture) if ref.mirrored else picture


def image_size(ref: ImageRef, max_pixels: int, where: str | None = None) -> tuple[int, int]:
    """Width and height of the picture that `open_image` gives, from the header alone.

    Args:
        ref: path, bytes or picture.
        max_pixels: the most pixels.
        where: the row, for messages; default: the key of `ref`.

    Returns:
        Width and height in pixels, turned upright by the EXIF orientation.

    Raises:
        DataError: missing, damaged, or not an image of `FORMATS`.
        SafetyError: more than `max_pixels` pixels.
    """
    return _read(ref, where, max_pixels, lambda picture: _upright_size(picture, max_pixels))


T = TypeVar("T")


def _read(ref: ImageRef, where: str | None, max_pixels: int, look: Callable[[Image.Image], T]) -> T:
    """What is seen in an opened picture; whatever goes wrong with it is a typed error."""
    source = where or ref.key
    try:
        if ref.picture is not None:
            return look(ref.picture)
        with opened(ref) as file:
            if ref.moment is not None:
                return look(video_frame(file, ref.moment, max_pixels))
            with _header(ref, file) as picture:
                return look(picture)
    except LockadaptError as error:
        raise type(error)(f"{_name(ref)} {error.message}", where=source, fix=error.fix) from error
    except Image.DecompressionBombError as error:
        raise SafetyError(
            f"{_name(ref)} has more pixels than Pillow opens", where=source, fix="scale it down, or remove it"
        ) from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        if memory_ran_out(error):
            raise
        raise DataError(
            f"{_name(ref)} is damaged or cut off ({_reason(error)})",
            where=source,
            fix="fetch it again, remove its rows, or let `data.on_bad_image: skip` drop them",
        ) from error


def _upright_size(picture: Image.Image, max_pixels: int) -> tuple[int, int]:
    _check_size(picture, max_pixels)
    width, height = picture.size
    with contextlib.suppress(Exception):
        if int(picture.getexif().get(_ORIENTATION, 1)) in _SIDEWAYS:
            return height, width
    return width, height


def _decoded(picture: Image.Image, max_pixels: int) -> Image.Image:
    _check_size(picture, max_pixels)
    picture.load()
    _turn_upright(picture)
    return _to_rgb(picture)


@contextlib.contextmanager
def opened(ref: ImageRef) -> Iterator[BinaryIO]:
    """Open the file or the bytes of an image; the file that is read is the one that was checked.

    What is compared is the open file, so that nothing can be put in its place between check and use.

    Args:
        ref: path or bytes.

    Yields:
        A binary file.

    Raises:
        DataError: it does not exist, is no regular file, cannot be read, or has changed since it was checked.
        SafetyError: it is another file than the one that was checked, or is reached by a symlink by now.
    """
    if ref.path is None:
        yield io.BytesIO(ref.again() if ref.again is not None else ref.data or b"")
        return
    try:
        # Neither a pipe nor a device may keep the scan waiting.
        handle = os.open(ref.path, os.O_RDONLY | os.O_NONBLOCK | (os.O_NOFOLLOW if ref.stamp else 0))
    except (OSError, ValueError) as error:
        if ref.stamp is not None and os.path.islink(ref.path):
            raise _swapped() from error
        if isinstance(error, PermissionError):
            raise DataError("cannot be read (permission denied)", fix="check its permissions") from error
        raise DataError("does not exist", fix="check the name and the folder `images`") from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise DataError("is no file", fix="name an image file")
    with open(handle, "rb") as file:
        if ref.stamp is not None:
            now = stamp_of(status)
            if os.path.realpath(ref.path) != str(ref.path):
                raise _swapped()
            if now != ref.stamp:
                raise DataError(
                    "has changed since its row was read", fix="leave images alone while they are read"
                )
        yield file


def _swapped() -> SafetyError:
    return SafetyError(
        "is reached by a symlink that was not there when it was checked",
        fix="leave images alone while they are read",
    )


def _header(ref: ImageRef, file: BinaryIO) -> Image.Image:
    """The picture in an open file, with nothing but its header read."""
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.init()
        formats = [name for name in FORMATS if name in Image.OPEN]
        try:
            return Image.open(file, formats=formats)
        except UnidentifiedImageError as error:
            raise DataError(
                f"is {_kind(file)}", fix="convert it to PNG or JPEG, or fetch it again"
            ) from error


def _kind(file: BinaryIO) -> str:
    """What a file that is no image is, by its first bytes."""
    file.seek(0)
    start = file.read(64)
    if start[4:8] == b"ftyp" and start[8:12] in _HEIC:
        return "a HEIC photo, which Pillow cannot read (heif-convert and sips make JPEG of it)"
    text = start.lstrip().lower()
    for mark, kind in (
        (b"<svg", "an SVG drawing, not an image of pixels"),
        (b"<?xml", "an XML or SVG file, not an image of pixels"),
        (b"<", "an HTML page (an error page that was saved as an image?)"),
        (b"pk\x03\x04", "a zip archive"),
        (b"%pdf", "a PDF file"),
        (b"version https://git-lfs", "a Git LFS pointer; the image itself was not fetched"),
        (b"\x80", "no image; it looks like pickle"),
    ):
        if text.startswith(mark):
            return kind
    return "empty" if not start else "damaged, or no image of a known format (" + ", ".join(FORMATS) + ")"


def _check_size(picture: Image.Image, max_pixels: int) -> None:
    width, height = picture.size
    tags = getattr(picture, "tag_v2", {})
    # A TIFF of 1 x 1 may be stored as one huge tile, which is what gets decoded.
    tile = tags.get(_TILE_WIDTH, 0) * tags.get(_TILE_LENGTH, 0)
    if max(width * height, tile) > max_pixels:
        raise SafetyError(
            f"has {max(width * height, tile):,} pixels ({width} x {height}), more than {max_pixels:,}",
            fix="scale it down, or raise `data.max_pixels`",
        )
    if width < 1 or height < 1:
        raise DataError(f"is {width} x {height} pixels", fix="fetch it again")


def _turn_upright(picture: Image.Image) -> None:
    # Broken EXIF says nothing about the pixels; viewers show such files unturned.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(picture, in_place=True)


def _to_rgb(picture: Image.Image) -> Image.Image:
    transparent = picture.info.get("transparency")
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture)
        picture = _grey(values)
        if isinstance(transparent, int):
            picture.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    if picture.mode == "La":
        picture = picture.convert("LA")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layer).convert("RGB")


def _grey(values: np.ndarray[Any, Any]) -> Image.Image:
    """8-bit grey of 16-bit, 32-bit or float values of shape (height, width)."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise DataError(
            "holds values that are no numbers (NaN or infinity)", fix="write it again, or remove it"
        )
    for top in (1, 255, 65535) if values.dtype.kind == "f" else (65535,):
        if low >= 0 and high <= top:
            return Image.fromarray(np.rint(values.astype(np.float32) * (255 / top)).astype(np.uint8))
    # A constant picture outside of these ranges has nothing to stretch and becomes black.
    scale = 255 / (high - low) if high > low else 0.0
    return Image.fromarray(np.rint((values.astype(np.float64) - low) * scale).astype(np.uint8))


def _name(ref: ImageRef) -> str:
    return f"image {quote(str(ref.path))}" if ref.path is not None else f"image {ref.key[:24]}"


def _reason(error: Exception) -> str:
    # Pillow names Python objects with their addresses; nothing of that belongs in a message.
    text = (str(error).splitlines() or [""])[0]
    return type(error).__name__ if not text or "0x" in text else text[:100]
