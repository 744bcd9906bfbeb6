"""Samples of any reader come back from the disk as they were, and are read anew where their file changed."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lockadapt.data.images import open_image
from lockadapt.data.readers import Source, read_samples
from lockadapt.data.sample import ImageRef, Sample, Turn
from lockadapt.data.spool import NoWholeFiles, Spool, open_spool
from lockadapt.data.table import Table
from lockadapt.errors import DataError, SafetyError


@pytest.fixture
def source(tmp_path: Path) -> Source:
    for name in "ab":
        Image.new("RGB", (8, 8), "red").save(tmp_path / f"{name}.png")
    file = tmp_path / "rows.json"
    rows = [{"image": f"{'ab'[n % 2]}.png", "captions": [f"one {n}", f"two {n}"]} for n in range(6)]
    file.write_text(json.dumps(rows))
    return Source(file, "caption")


def spooled(source: Source, few: int = 0) -> Spool:
    return open_spool(source, lambda: read_samples("jsonl", source), few, Path(source.path).parent / "cache")


def test_samples_come_back(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, spool = read_samples("jsonl", source), spooled(source)
    table = Table(spool, spool.folder.parent)
    assert len(table) == spool.rows == len(samples) == 12
    assert list(table) == samples
    assert [table.where(row) for row in range(12)] == [sample.where for sample in samples]
    assert [[image.stamp for image in sample.images] for sample in table] == [
        [image.stamp for image in sample.images] for sample in samples
    ]
    assert table.lines.groups == 2
    monkeypatch.setattr("lockadapt.data.spool._write", lambda *_: pytest.fail("read again"))
    assert spooled(source) == spool


def test_every_field_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"")
    changed: dict[str, Any] = {
        "images": (ImageRef(path.as_posix(), path),) * 2,
        "turns": (Turn("user", "left or right", 2, (5, 13)), Turn("assistant", "\u00fc \U0001f600")),
        "where": "here",
        "references": ("x", "y"),
        "answer_type": "other",
        "sample_id": "7",
        "boxes": ((0.1, 0.2, 0.3, 1 / 3),),
        "negatives": ("n",),
        "rejected": "r",
    }
    # Which of several sources a row is of is known where they are joined, not in the spool of one.
    assert {*changed, "source"} == {field.name for field in dataclasses.fields(Sample)}
    file = tmp_path / "rows"
    file.write_text("")
    spool = open_spool(Source(file, "vqa"), lambda: [Sample(**changed)], 0, tmp_path)
    assert list(Table(spool, tmp_path)) == [Sample(**changed)]


def test_few_are_counted_only_and_another_state_is_read_anew(source: Source) -> None:
    counted = spooled(source, few=12)
    assert counted.rows == 12
    assert [file.name for file in counted.folder.iterdir()] == ["about.json"]
    os.utime(source.path, (5, 5))
    assert spooled(source).folder != counted.folder
    other = dataclasses.replace(source, prompt="Say:")
    assert spooled(other).folder != spooled(source).folder


def test_images_that_are_no_whole_files(tmp_path: Path, source: Source) -> None:
    path = tmp_path / "a.png"
    for image in (
        ImageRef("b", data=b"x"),
        ImageRef("f", path, moment=1.0),
        ImageRef("m", path, mirrored=True),
    ):
        sample = Sample((image,), (Turn("assistant", "a"),), "here")
        with pytest.raises(NoWholeFiles):
            open_spool(source, lambda sample=sample: [sample], 0, tmp_path / "cache")  # type: ignore[misc]
    assert not list((tmp_path / "cache").iterdir())


def test_nothing_is_put_in_the_place_of_an_image(tmp_path: Path, source: Source) -> None:
    spool = spooled(source)
    table = Table(spool, spool.folder.parent)
    (tmp_path / "secret.png").write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError):
        open_image(table[0].images[0], 10_000)
    (tmp_path / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(SafetyError):
        open_image(table[0].images[0], 10_000)
