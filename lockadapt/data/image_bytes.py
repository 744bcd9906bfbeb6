"""Identifies an image by the SHA-256 of its bytes, and opens exactly these bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from PIL import Image

from lockadapt.data.images import open_image, opened
from lockadapt.data.ledger import ImageLedger, Known
from lockadapt.data.sample import ImageRef
from lockadapt.errors import DataError, SafetyError

_AT_ONCE = 512
# Keeps decoded pictures apart from files; no image format begins like this.
_PICTURE = b"lockadapt picture "
_MIRRORED = b"lockadapt mirrored "


def content_key(image: ImageRef, max_pixels: int) -> str:
    """Return the SHA-256 (hex) of an image's bytes; for a decoded picture, of its size and RGB pixels.

    The key of a mirrored file or of a frame is another than that of the file.

    Args:
        image: path, bytes or decoded picture.
        max_pixels: the most pixels that a decoded picture may have.

    Returns:
        64 hexadecimal digits.

    Raises:
        DataError: the file cannot be read.
        SafetyError: a decoded picture has more than `max_pixels` pixels.
    """
    if image.picture is not None:
        picture = open_image(image, max_pixels)
        head = _PICTURE + f"{picture.width}x{picture.height} ".encode()
        return hashlib.sha256(head + picture.tobytes()).hexdigest()
    return _digest(image, _bytes(image))


def content_keys(
    images: Mapping[str, ImageRef],
    max_pixels: int,
    progress: Callable[[int, int], None] | None = None,
    ledger: ImageLedger | None = None,
) -> dict[str, str]:
    """`content_key` of many images by their own keys, every image read once, on several threads.

    Args:
        images: by key.
        max_pixels: as `content_key`.
        progress: told (done, all).
        ledger: spares the reading of files that are as they were, and is told of the others.

    Returns:
        Content keys by the images' keys, in their order.
    """
    known = ledger.known(images.values()) if ledger is not None else {}
    key_of = {key: fact.sha256 for key, fact in known.items() if fact.sha256 is not None}
    names = [name for name in images if name not in key_of]
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        for start in range(0, len(names), _AT_ONCE):
            part = names[start : start + _AT_ONCE]
            keys = list(pool.map(lambda name: content_key(images[name], max_pixels), part))
            key_of.update(zip(part, keys, strict=True))
            if ledger is not None:
                ledger.keep(images, {n: Known(sha256=key) for n, key in zip(part, keys, strict=True)})
            if progress:
                progress(len(key_of), len(images))
    return {name: key_of[name] for name in images}


def picture_of(image: ImageRef, key: str, max_pixels: int) -> Image.Image:
    """Decode the RGB picture of an image from the very bytes that have its content key.

    Args:
        image: path, bytes or decoded picture.
        key: what `content_key` gave for it.
        max_pixels: the most pixels, as for `open_image`.

    Returns:
        The picture, upright, in mode RGB.

    Raises:
        DataError: the bytes are others by now, or no picture.
    """
    if image.picture is not None:
        return open_image(image, max_pixels)
    data = _bytes(image)
    source = str(image.path or image.key)
    if _digest(image, data) != key:
        raise DataError(
            "the image changed during the run", where=source, fix="leave images alone while they are read"
        )
    return open_image(replace(image, path=None, stamp=None, again=None, data=data), max_pixels, source)


def _digest(image: ImageRef, data: bytes) -> str:
    digest = hashlib.sha256(_MIRRORED if image.mirrored else b"")
    if image.moment is not None:
        digest.update(f"lockadapt frame {image.moment:.3f} ".encode())
    digest.update(data)
    return digest.hexdigest()


def _bytes(image: ImageRef) -> bytes:
    try:
        with opened(image) as file:
            return file.read()
    except (DataError, SafetyError) as error:
        raise type(error)(f"the image {error.message}", where=str(image.path), fix=error.fix) from error
    except OSError as error:
        raise DataError(
            f"the image cannot be read: {error.strerror}",
            where=str(image.path),
            fix="check the name and the folder `images`",
        ) from error
