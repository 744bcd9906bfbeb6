"""What is known of image files holds for the state that they are in, and spares the opening of them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from PIL import Image

from lockadapt.data import image_bytes, scan
from lockadapt.data.image_bytes import content_keys
from lockadapt.data.ledger import FILE, ImageLedger, Known
from lockadapt.data.paths import DataRoot
from lockadapt.data.sample import ImageRef, question_answer
from lockadapt.data.scan import few_samples, scan_images

LIMIT, LONG_AGO = 10_000, 1_600_000_000


def picture(folder: Path, name: str, colour: str = "red", when: int = LONG_AGO) -> ImageRef:
    path = folder / f"{name}.png"
    Image.new("RGB", (8, 8), colour).save(path)
    os.utime(path, (when, when))
    return ref(path)


def ref(path: Path) -> ImageRef:
    return ImageRef(key=path.as_posix(), path=path, stamp=DataRoot.stamp(path))


def test_only_files_as_they_were_are_known(tmp_path: Path) -> None:
    ledger = ImageLedger(tmp_path / "cache")
    images = {name: picture(tmp_path, name) for name in "abc"}
    by_key = {image.key: image for image in images.values()}
    ledger.keep(by_key, {images["a"].key: Known(LIMIT), images["b"].key: Known(LIMIT, "00")})
    ledger.keep(by_key, {images["a"].key: Known(sha256="11")})
    assert ledger.known(by_key.values()) == {
        images["a"].key: Known(LIMIT, "11"),
        images["b"].key: Known(LIMIT, "00"),
    }
    touched = picture(tmp_path, "a", when=LONG_AGO + 1)
    longer = picture(tmp_path, "b")
    longer.path.write_bytes(longer.path.read_bytes() + b" ")
    os.utime(longer.path, (LONG_AGO, LONG_AGO))
    assert ledger.known([touched, ref(longer.path)]) == {}
    ledger.keep({touched.key: touched}, {touched.key: Known(sha256="22")})
    assert ledger.known([touched]) == {touched.key: Known(None, "22")}


def test_what_is_no_settled_file_is_not_kept(tmp_path: Path) -> None:
    ledger, image = ImageLedger(tmp_path), picture(tmp_path, "a")
    fresh = tmp_path / "fresh.png"
    Image.new("RGB", (8, 8)).save(fresh)
    frame = ImageRef("frame", image.path, stamp=image.stamp, moment=1.0)
    for other in (ref(fresh), frame, ImageRef("bytes", data=b"x"), ref(tmp_path / "absent.png")):
        ledger.keep({other.key: other}, {other.key: Known(LIMIT)})
        assert ledger.known([other]) == {}


def test_a_damaged_or_unwritable_ledger_knows_nothing(tmp_path: Path) -> None:
    image = picture(tmp_path, "a")
    (tmp_path / FILE).write_bytes(b"no database" * 100)
    (tmp_path / "file").write_text("")
    for folder in (tmp_path, tmp_path / "file"):
        ImageLedger(folder).keep({image.key: image}, {image.key: Known(LIMIT)})
        assert ImageLedger(folder).known([image]) == {}


def test_content_keys_read_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = ImageLedger(tmp_path)
    images = {image.key: image for image in (picture(tmp_path, "a"), picture(tmp_path, "b", "blue"))}
    expected = {key: hashlib.sha256(image.path.read_bytes()).hexdigest() for key, image in images.items()}
    assert content_keys(images, LIMIT, ledger=ledger) == expected
    monkeypatch.setattr(image_bytes, "content_key", lambda *_: pytest.fail("read again"))
    assert content_keys(images, LIMIT, ledger=ledger) == expected


def test_a_scan_opens_what_it_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, opened = ImageLedger(tmp_path), list[str]()
    images = [picture(tmp_path, name) for name in "ab"]
    bad = tmp_path / "c.png"
    bad.write_bytes(images[0].path.read_bytes()[:40])
    os.utime(bad, (LONG_AGO, LONG_AGO))
    samples = [question_answer("?", "a", [image], f"rows:{n}") for n, image in enumerate([*images, ref(bad)])]
    open_image = scan.open_image

    def noted(image: ImageRef, limit: int, where: str) -> Image.Image:
        opened.append(image.path.stem)
        return open_image(image, limit, where)

    monkeypatch.setattr(scan, "open_image", noted)

    def scanned(limit: int, told: ImageLedger) -> str:
        opened.clear()
        report = scan_images(samples, limit, "skip", 0.5, ledger=told)
        assert report.good == samples[:2]
        return "".join(sorted(opened))

    assert scanned(LIMIT, ledger) == "abc"
    assert scanned(LIMIT, ledger) == "c"  # bad ones are met again
    assert scanned(LIMIT + 1, ledger) == "c"
    assert scanned(LIMIT - 1, ledger) == "abc"
    assert scanned(LIMIT, ImageLedger(tmp_path, recall=False)) == "abc"


def test_few_samples(tmp_path: Path) -> None:
    images = [ImageRef(f"{number}") for number in range(30)]
    samples = [question_answer("?", "a", [images[n % 30]], f"rows:{n}") for n in range(60)]
    assert few_samples(samples, 30, 0) == samples
    few = few_samples(samples, 7, 0)
    assert len({sample.images[0].key for sample in few}) == len(few) == 7
    assert few == few_samples(samples, 7, 0) != few_samples(samples, 7, 1)


def test_where_nothing_can_be_written_nothing_is_left(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    image = picture(tmp_path, "a")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))
    try:
        ImageLedger(tmp_path / "cache").keep({image.key: image}, {image.key: Known(LIMIT)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "cache").exists()
