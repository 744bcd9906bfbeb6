"""What the benchmark of the start writes and prints."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from lockadapt.data.readers import read_samples
from lockadapt.data.readers.source import Source


@pytest.mark.usefixtures("scripts")
def test_rows_name_every_image_once_or_more(tmp_path: Path) -> None:
    from startup import SCENES, write_rows

    write_rows(tmp_path, rows=250, images=SCENES + 36)
    samples = read_samples("jsonl", Source(tmp_path / "rows.jsonl", "vqa", images=tmp_path / "images"))
    shown = [sample.images[0].path for sample in samples]
    assert len(samples) == 250
    assert len(set(shown)) == SCENES + 36
    assert all(path is not None and path.is_file() for path in shown)


@pytest.mark.usefixtures("scripts")
@pytest.mark.parametrize("format", ["parquet", "tar"])
def test_shards_hold_rows_and_images(format: str, tmp_path: Path) -> None:
    from startup import write_shards

    write_shards(tmp_path, 30, 10, format)
    kind = {"tar": "webdataset"}.get(format, format)
    samples = read_samples(kind, Source(tmp_path / "shards", "vqa"))
    assert len(samples) == 30
    assert len({sample.images[0].key for sample in samples}) == 10


@pytest.mark.usefixtures("scripts")
def test_the_summary_has_the_keys_of_the_contract() -> None:
    from startup import Startup

    assert [field.name for field in fields(Startup)] == [
        *("rows", "images", "format", "cold_seconds", "warm_seconds", "cold_cpu_seconds", "warm_cpu_seconds"),
        *("rss_mib", "rss_growth_mib"),
    ]
