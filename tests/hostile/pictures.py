"""Image files for hostile cases, made by hand where no library would make them."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image


def image(format: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (8, 8), **options: Any) -> bytes:
    """A good file."""
    file = io.BytesIO()
    Image.new(mode, size, 1 if mode in ("1", "L", "P", "I;16", "I", "F") else "red").save(
        file, format, **options
    )
    return file.getvalue()


def png() -> bytes:
    """A good PNG."""
    return image()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(
    width: int, height: int, data: bytes = b"", depth: int = 8, colour: int = 2, *chunks: bytes
) -> bytes:
    """A PNG that says what it likes about itself."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + b"".join(chunks)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def bmp_of(width: int, height: int) -> bytes:
    """A BMP whose header claims a size."""
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head


def gif_of(width: int, height: int) -> bytes:
    """A GIF whose screen claims a size."""
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", width, height, 0, 0, 0)
        + b"\x2c"
        + struct.pack("<HHHHB", 0, 0, width, height, 0)
        + b"\x02\x02\x44\x01\x00\x3b"
    )
