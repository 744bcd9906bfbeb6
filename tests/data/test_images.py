"""Every picture becomes upright 8-bit RGB on white; every damaged one a typed error that names it."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lockadapt.data.images import open_image
from lockadapt.data.sample import ImageRef
from lockadapt.errors import DataError, SafetyError

LIMIT = 1_000_000


def opened(data: bytes, limit: int = LIMIT) -> Image.Image:
    return open_image(ImageRef(key="sha256:x", data=data), limit, "train.jsonl:17")


def encoded(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG by hand, for what Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def palette(alpha: bytes | int | None, format: str = "PNG") -> bytes:
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    return encoded(picture, format, **({} if alpha is None else {"transparency": alpha}))


def pixels(mode: str, *values: Any) -> Image.Image:
    picture = Image.new(mode, (len(values), 1))
    for x, value in enumerate(values):
        picture.putpixel((x, 0), value)
    return picture


WHITE, BLACK, RED, BLUE = (255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 0, 255)

MODES = {
    "RGB": (encoded(pixels("RGB", RED, BLUE)), [RED, BLUE]),
    "RGBA": (encoded(pixels("RGBA", (255, 0, 0, 255), (0, 0, 0, 0))), [RED, WHITE]),
    "RGBA half": (encoded(pixels("RGBA", (0, 0, 0, 128), (0, 0, 255, 0))), [(127, 127, 127), WHITE]),
    "LA": (encoded(pixels("LA", (0, 255), (0, 0))), [BLACK, WHITE]),
    "L": (encoded(pixels("L", 7, 200)), [(7, 7, 7), (200, 200, 200)]),
    "1": (encoded(pixels("1", 0, 1)), [BLACK, WHITE]),
    "P": (palette(None), [RED, BLUE]),
    "P, one transparent": (palette(1), [RED, WHITE]),
    "P, alpha table": (palette(b"\x00\xff"), [WHITE, BLUE]),
    "CMYK": (encoded(pixels("CMYK", (0, 255, 255, 0), (0, 0, 0, 0)), "TIFF"), [RED, WHITE]),
    "YCbCr": (encoded(pixels("YCbCr", (255, 128, 128), (0, 128, 128)), "TIFF"), [WHITE, BLACK]),
    "16-bit": (png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 65535, 257 * 9)), [WHITE, (9, 9, 9)]),
    "16-bit, dark": (png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 300, 0)), [(1, 1, 1), BLACK]),
    "16-bit with a transparent grey": (
        png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 300, 0), (b"tRNS", struct.pack(">H", 0))),
        [(1, 1, 1), WHITE],
    ),
    "8-bit grey with a transparent grey": (
        png(2, 1, 8, 0, b"\0\x05\x06", (b"tRNS", struct.pack(">H", 5))),
        [WHITE, (6, 6, 6)],
    ),
    "RGB with a transparent colour": (
        png(2, 1, 8, 2, b"\0\xff\0\0\0\0\xff", (b"tRNS", struct.pack(">3H", 255, 0, 0))),
        [WHITE, BLUE],
    ),
    "I": (encoded(pixels("I", 65535, 257 * 3), "TIFF"), [WHITE, (3, 3, 3)]),
    "I beyond 16 bit": (encoded(pixels("I", -1000, 1_000_000), "TIFF"), [BLACK, WHITE]),
    "I constant": (encoded(pixels("I", -5, -5), "TIFF"), [BLACK, BLACK]),
    "F 0..1": (encoded(pixels("F", 1.0, 0.2), "TIFF"), [WHITE, (51, 51, 51)]),
    "F 0..255": (encoded(pixels("F", 200.0, 3.0), "TIFF"), [(200, 200, 200), (3, 3, 3)]),
    "F beyond": (encoded(pixels("F", -1e30, 3e38), "TIFF"), [BLACK, WHITE]),
    "GIF with transparency": (palette(1, "GIF"), [RED, WHITE]),
    "WebP with alpha": (
        encoded(pixels("RGBA", (255, 0, 0, 255), (9, 9, 9, 0)), "WEBP", lossless=True),
        [RED, WHITE],
    ),
}


@pytest.mark.parametrize(("data", "expected"), MODES.values(), ids=MODES.keys())
def test_modes(data: bytes, expected: list[tuple[int, int, int]]) -> None:
    try:
        Image.open(io.BytesIO(data)).load()
    except OSError as error:
        pytest.skip(f"this Pillow does not read what it wrote: {error}")  # 12.3: YCbCr in TIFF
    picture = opened(data)
    assert picture.mode == "RGB"
    assert [picture.getpixel((x, 0)) for x in range(picture.width)] == expected


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "I;16", "I;16B", "I;16L", "HSV", "LAB", "RGBX"])
def test_rare_modes_of_pictures_in_memory(mode: str) -> None:
    before = Image.new(mode, (3, 2))
    after = open_image(ImageRef(key="k", picture=before), LIMIT)
    assert (after.mode, after.size) == ("RGB", (3, 2))
    assert before.mode == mode
    if mode != "LAB":  # whose zeros are no black
        assert after.getpixel((0, 0)) == (WHITE if before.has_transparency_data else BLACK)


def test_a_picture_in_memory_is_copied_and_stays_open() -> None:
    before = Image.new("RGB", (2, 2), RED)
    after = open_image(ImageRef(key="k", picture=before), LIMIT)
    after.putpixel((0, 0), BLUE)
    assert before.getpixel((0, 0)) == RED


@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, (0, 0)), (2, (2, 0)), (3, (2, 1)), (4, (0, 1)), (5, (0, 0)), (6, (1, 0)), (7, (1, 2)), (8, (0, 2))],
)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation: int, corner: tuple[int, int], format: str) -> None:
    """The red pixel is stored at the top left of 3 x 2; where it is shown follows from the EXIF standard."""
    picture = Image.new("RGB", (3, 2), BLUE)
    picture.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = opened(encoded(picture, format, exif=exif, **({"lossless": True} if format == "WEBP" else {})))
    assert shown.size == ((2, 3) if orientation > 4 else (3, 2))
    assert shown.getpixel(corner) == RED


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_leaves_the_picture() -> None:
    data = encoded(Image.new("RGB", (3, 2), RED), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert opened(data).getpixel((0, 0)) == RED


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert opened(data).getpixel((1, 1)) == RED


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000)])
def test_extreme_sizes(size: tuple[int, int]) -> None:
    assert opened(encoded(Image.new("RGBA", size, (0, 0, 0, 0)))).size == size


def noise(format: str) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    return encoded(Image.fromarray(values), format)


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("0.png", noise("PNG"))
    return file.getvalue()


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x55]) + data[middle + 1 :]


def uneven_float() -> bytes:
    return encoded(pixels("F", 1.0, float("nan")), "TIFF")


CUT = {
    f"{format} cut at {share:.0%}": noise(format)[: int(len(noise(format)) * share)]
    for format in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
    for share in (0.3, 0.9)
}
BROKEN = {
    **CUT,
    "empty": b"",
    "one byte": b"\x89",
    "header only": noise("PNG")[:33],
    "flipped bits": flipped(noise("PNG")),
    "HTML": b"<!DOCTYPE html><html><body>404</body></html>",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "SVG with XML head": b'<?xml version="1.0"?><svg/>',
    "zip": zipped(),
    "PDF": b"%PDF-1.7\n",
    "text": b"not an image at all",
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "pickle": b"\x80\x04K\x01.",
    "EPS, which would run Ghostscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n",
    "PCX, which Pillow opens and we do not": encoded(Image.new("RGB", (4, 4)), "PCX"),
    "no width": png(0, 1, 8, 0, b"\0"),
    "NaN": uneven_float(),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_broken_pictures(data: bytes) -> None:
    with pytest.raises(DataError) as caught:
        opened(data)
    assert caught.value.exit_code == 3
    assert caught.value.where == "train.jsonl:17"
    assert caught.value.fix
    assert "object at" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind"), [("HTML", "HTML"), ("SVG", "SVG"), ("zip", "zip"), ("Git LFS pointer", "LFS")]
)
def test_what_it_is_instead_is_said(name: str, kind: str) -> None:
    with pytest.raises(DataError, match=kind):
        opened(BROKEN[name])


def bomb(width: int, height: int) -> bytes:
    row = b"\0" * (1 + (width + 7) // 8)
    return png(width, height, 1, 0, row * min(height, 10))


def huge_tile() -> bytes:
    """A TIFF of 1 x 1 whose only tile is 20,000 x 20,000."""
    tags = [(256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (277, 1), (322, 20_000), (323, 20_000)]
    tags += [(324, 8), (325, 1)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + b"\0" * 8


@pytest.mark.parametrize(
    "data", [bomb(1001, 1000), bomb(10_000, 10_000), bomb(60_000, 60_000), huge_tile()], ids=len
)
def test_bombs_are_refused_before_decoding(data: bytes) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(SafetyError, match="pixels") as caught:
            opened(data)
    assert caught.value.exit_code == 10
    assert caught.value.where == "train.jsonl:17"
    assert not told


def test_the_limit_is_a_limit_and_pillow_does_not_warn_below_it() -> None:
    assert opened(encoded(Image.new("1", (1000, 1000)))).size == (1000, 1000)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(DataError, match="cut off"):  # decoding begins; Pillow's own limit is 89,478,485
            opened(bomb(9500, 9500)[:-20], limit=100_000_000)
    assert not told


def test_files(tmp_path: Path) -> None:
    good = tmp_path / "0.png"
    good.write_bytes(encoded(pixels("RGB", RED)))
    assert open_image(ImageRef(key="0", path=good), LIMIT).getpixel((0, 0)) == RED
    # The extension does not matter, the content does.
    (tmp_path / "1.jpg").write_bytes(good.read_bytes())
    assert open_image(ImageRef(key="1", path=tmp_path / "1.jpg"), LIMIT).getpixel((0, 0)) == RED
    os.mkfifo(tmp_path / "pipe.png")
    names = {"absent.png": "does not exist", ".": "no file", "pipe.png": "no file", "x" * 400: "not exist"}
    for name, words in names.items():
        with pytest.raises(DataError, match=words) as caught:
            open_image(ImageRef(key="the key", path=tmp_path / name), LIMIT)
        assert caught.value.where == "the key"
