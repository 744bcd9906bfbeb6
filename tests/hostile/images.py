"""Images that are damaged, dishonest, or no images."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.hostile.case import ACCEPTED, Case, Content, lines, row
from tests.hostile.pictures import bmp_of, chunk, gif_of, image, png, png_of

ROWS = {"rows.jsonl": lines(row(image="x.png"))}


def case(what: str, content: Content, code: int, *words: str) -> Case:
    return Case("images", what, code, words, {**ROWS, "x.png": content})


def cases() -> Iterator[Case]:
    for format, mode in (
        *(("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        *(("JPEG", mode) for mode in ("L", "RGB", "CMYK")),
        *(("TIFF", mode) for mode in ("1", "L", "RGB", "CMYK", "I", "F", "LAB")),
        *((format, "RGB") for format in ("WEBP", "GIF", "BMP", "PPM", "JPEG2000")),
    ):
        yield case(f"{format} in mode {mode}", image(format, mode), *flat(ACCEPTED))
    for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        good = image(format, size=(64, 64))
        yield case(f"{format} without its second half", good[: len(good) // 2], 3, "x.png")
        yield case(f"only the first 12 bytes of a {format}", good[:12], 3, "x.png")
        yield case(f"{format} renamed and with rubbish behind it", good + b"rubbish" * 9, *flat(ACCEPTED))
    yield case("empty file", b"", 3, "empty")
    yield case("only zeros", bytes(4096), 3, "no image")
    yield case("text", "hello", 3, "no image")
    yield case("HTML page", "<!doctype html><html>404</html>", 3, "HTML")
    yield case("SVG", "<svg xmlns='http://www.w3.org/2000/svg'/>", 3, "SVG")
    yield case(
        "XML",
        "<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><svg>&b;</svg>",
        3,
        "XML",
    )
    yield case("PDF", b"%PDF-1.7", 3, "PDF")
    yield case("zip archive", b"PK\x03\x04" + bytes(64), 3, "zip")
    yield case("pickle", b"\x80\x04\x95\x10cos\nsystem\n", 3, "pickle")
    yield case("Git LFS pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", 3, "LFS")
    yield case("HEIC", b"\0\0\0\x18ftypheic" + bytes(99), 3, "HEIC", "JPEG")
    yield case(
        "EPS, which would run Ghostscript",
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
        3,
        "no image",
    )
    yield case("XPM", '/* XPM */\nstatic char * x[] = {"1 1 1 1", "a c #000", "a"};', 3, "no image")
    yield case("header only PNG of 60,000 x 60,000", png_of(60_000, 60_000), 10, "pixels")
    yield case("PNG of 2**31 - 1 on a side", png_of(2**31 - 1, 2**31 - 1), 10, "pixels")
    yield case("PNG of no width", png_of(0, 5), 3, "x.png")
    yield case("PNG bomb: 50 MB of zeros in 50 kB", png_of(9000, 9000, bytes(27_009_000)), 10, "81,000,000")
    yield case("PNG with less data than it says", png_of(64, 64, b"\0" * 10), 3, "x.png")
    yield case("PNG of bit depth 77", png_of(4, 4, bytes(99), 77), 3, "x.png")
    yield case(
        "PNG with a text chunk that unpacks to 100 MB",
        png_of(4, 4, bytes(52), 8, 2, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000)))),
        3,
        "x.png",
    )
    yield case("PNG whose chunk says 4 GB", png()[:8] + struct.pack(">I", 2**32 - 1) + b"IHDR", 3, "x.png")
    yield case("BMP of 40,000 x 40,000", bmp_of(40_000, 40_000), 10, "pixels")
    yield case("BMP of negative width", bmp_of(-5, 5), 10, "pixels")
    yield case("GIF of 65,535 x 65,535", gif_of(65_535, 65_535), 10, "pixels")
    yield case("folder", lambda path: path.mkdir(), 3, "no file")
    yield case("pipe that nobody writes", lambda path: os.mkfifo(path), 3, "no file")
    yield case("broken link", lambda path: path.symlink_to("nowhere"), 3, "does not exist")
    yield case("link to itself", lambda path: path.symlink_to("x.png"), 10, "symlink")
    yield case("link to a file inside", lambda path: path.symlink_to("0.png"), *flat(ACCEPTED))
    yield case("link out of the folder", lambda path: path.symlink_to("/etc/hostname"), 10, "symlink")
    yield case("link to a device", lambda path: path.symlink_to("/dev/zero"), 10, "symlink")
    yield case(
        "file without permissions", locked, *(flat(ACCEPTED) if os.geteuid() == 0 else (3, "permission"))
    )
    yield Case("images", "missing", 3, ("does not exist",), {**ROWS})
    yield Case("images", "in upper case on the disk", 3, ("does not exist",), {**ROWS, "X.PNG": png()})
    for count, words in ((30, "17 more"), (3, "x2.png")):
        many = lines(*[row(image=f"x{number}.png") for number in range(count)])
        yield Case("images", f"{count} missing", 3, ("does not exist", words), {"rows.jsonl": many})


def locked(path: Path) -> None:
    path.write_bytes(png())
    path.chmod(0)


def flat(ending: tuple[int, tuple[str, ...]]) -> Any:
    return ending[0], *ending[1]


CASES = list(cases())
