"""Shards: the rows that were written, window by window, each once an epoch; nothing else is opened."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lockadapt.data import stream
from lockadapt.data.bad_rows import Allowed, BadRowLog
from lockadapt.data.drawn import DrawnRows
from lockadapt.data.encode import Encoded, EncodeReport
from lockadapt.data.image_bytes import content_key
from lockadapt.data.images import open_image
from lockadapt.data.mixture import Draws, MixedDataset, MixtureSampler
from lockadapt.data.problems import BadRows
from lockadapt.data.readers import Source, read_samples
from lockadapt.data.readers.shards import shard_rules
from lockadapt.data.sample import Sample
from lockadapt.data.shards import open_shards
from lockadapt.data.shards.files import named_files
from lockadapt.data.sources import SourceDraw
from lockadapt.data.stream import StreamRows
from lockadapt.errors import DataError, LockadaptError, SafetyError
from tests.support.shards import add, png, row, write, write_parquet, write_tars

FORMATS = pytest.mark.parametrize("format", ["parquet", "webdataset"])


def rows_of(
    format: str,
    path: Path | str,
    limit: int | None = None,
    cache: Path | None = None,
    bad_rows: BadRows | None = None,
) -> StreamRows:
    source = Source(str(path), "vqa", limit=limit, bad_rows=bad_rows)
    return StreamRows(open_shards(format, str(path), limit, cache, bad_rows), source, shard_rules(source))


def encoded(samples: Sequence[Sample]) -> EncodeReport:
    ids = np.zeros(1, np.int32)
    return EncodeReport([Encoded(ids, ids, sample.images, sample, 0) for sample in samples])


@FORMATS
def test_the_rows_are_those_that_were_written(format: str, tmp_path: Path) -> None:
    folder = write(format, tmp_path / "shards", 21)
    rows = rows_of(format, folder, 19, tmp_path / "cache")
    assert len(rows) == 19
    for number, sample in enumerate(rows):
        assert [turn.text for turn in sample.turns] == list(row(number).values())
        assert [image.data for image in sample.images] == [png(number)]
    assert list(rows) == read_samples(format, Source(str(folder), "vqa", limit=19))
    assert sorted(rows.few, key=str) == sorted(rows, key=str)
    assert rows.where(9) == {"parquet": "00008.parquet:1", "webdataset": "00001.tar:a/00009"}[format]
    again = rows_of(format, folder, 19, tmp_path / "cache")  # from the index that was kept
    assert again[:] == rows[:]
    assert again.identity == rows.identity != rows_of(format, folder).identity
    assert len(rows_of(format, folder, None, tmp_path / "cache")) == 21


@FORMATS
def test_every_row_once_an_epoch_for_any_lanes(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "WINDOW_ROWS", 8)
    rows = rows_of(format, write(format, tmp_path / "shards", 40))
    only_lane = rows.drawn(SourceDraw(), 1, 3)
    order = [only_lane(0) for _ in range(80)]
    assert sorted(order[:40]) == sorted(order[40:]) == list(range(40)) != order[:40] != order[40:]
    # Rows of a window follow each other: of few blocks, in random order.
    windows = [order[start : start + 8] for start in range(0, 40, 8)]
    blocks = [{rows.shards.block_of(number) for number in window} for window in windows]
    assert sum(map(len, blocks)) == len(rows.shards.begins) - 1
    assert any(window != sorted(window) for window in windows)
    again, other = rows.drawn(SourceDraw(), 1, 3), rows.drawn(SourceDraw(), 1, 4)
    assert [again(0) for _ in range(80)] == order != [other(0) for _ in range(80)]
    # Lanes take windows in turn, so that each row is still seen once.
    lanes = rows.drawn(SourceDraw(), 1, 3)
    dealt = [(number // 2 % 2, lanes(number // 2 % 2)) for number in range(32)]
    assert max(Counter(number for _, number in dealt).values()) == 1
    assert [number for lane, number in dealt if lane == 0][:8] == order[:8]
    kept = rows.drawn(SourceDraw(shuffle=False), 1, 3)
    assert [kept(0) for _ in range(41)] == [*range(40), 0]


def test_steps_keep_their_rows_on_any_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "WINDOW_ROWS", 8)
    rows = rows_of("parquet", write_parquet(tmp_path / "shards", 40))
    drawn = DrawnRows(rows, lambda samples: EncodeReport(), BadRowLog("vqa", 40, Allowed()))
    steps = {}
    for processes in (1, 2, 4):
        most, size = {"vqa": 1}, {"vqa": 4 // processes}
        draws = Draws({"vqa": 1.0}, size, 12 * processes, 0, most, processes, workers=2)
        batches = list(MixtureSampler(MixedDataset({"vqa": drawn}), draws))
        steps[processes] = [
            [row for batch in batches[start : start + processes] for row in batch]
            for start in range(0, len(batches), processes)
        ]
    assert steps[1] == steps[2] == steps[4]
    # Workers read windows of their own.
    assert not {row for step in steps[1][0:4:2] for row in step} & {
        r for step in steps[1][1:4:2] for r in step
    }


@FORMATS
def test_fsspec_reads_what_a_user_names(format: str, tmp_path: Path) -> None:
    folder = write(format, tmp_path / "shards", 20)
    memory = fsspec.filesystem("memory")
    for file in folder.iterdir():
        memory.pipe(f"/{format}/{file.name}", file.read_bytes())
    local, remote = rows_of(format, folder), rows_of(format, f"memory://{format}")
    assert remote[:] == local[:]
    assert remote.identity == local.identity
    memory.pipe(f"/{format}/{sorted(folder.iterdir())[0].name}", b"other")
    with pytest.raises(DataError, match="changed since the run began"):
        remote.shards._refuse_changed(0)
    memory.rm(f"/{format}", recursive=True)


def test_names_of_shards(tmp_path: Path) -> None:
    folder = write_tars(tmp_path / "shards", 20)
    all_of_it = named_files(str(folder), (".tar",))
    assert [Path(name).name for name in all_of_it] == ["00000.tar", "00001.tar", "00002.tar"]
    assert named_files(f"{folder}/*.tar", (".tar",)) == all_of_it
    assert named_files(f"{folder}/{{00000..00002}}.tar", (".tar",)) == all_of_it
    (tmp_path / "none").mkdir()
    refused = {
        str(tmp_path / "none"): DataError,
        "reference://a": SafetyError,
        "simplecache::http://a": SafetyError,
        f"{folder}/{{2..1}}.tar": DataError,
    }
    for name, error in refused.items():
        with pytest.raises(error):
            named_files(name, (".tar",))


def test_only_plain_members_of_a_tar_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    with tarfile.open(file, "w") as archive:
        link = tarfile.TarInfo("1.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        add(archive, "../2.png", png(2))
        add(archive, "../2.json", b'{"question": "q", "answer": "a"}')
        add(archive, "../2.pyd", b"\x80\x04.")
        add(archive, "3.json", b"[1]")
    rows = rows_of("webdataset", file)
    assert rows[0].images[0].data == png(2)
    assert len(rows) == 2
    with pytest.raises(DataError, match="no object"):
        rows[1]


@FORMATS
def test_what_cannot_be_read_is_a_typed_error(format: str, tmp_path: Path) -> None:
    suffix = {"parquet": "parquet", "webdataset": "tar"}[format]
    for name, data in (("empty", b""), ("text", b"no such thing"), ("cut", b"PAR1" + b"\0" * 600)):
        file = tmp_path / f"{name}.{suffix}"
        file.write_bytes(data)
        with pytest.raises(LockadaptError):
            rows_of(format, file)
    with pytest.raises(DataError, match="no such file"):
        rows_of(format, tmp_path / f"gone.{suffix}")
    folder = write(format, tmp_path / "shards", 9)
    rows = rows_of(format, folder)
    whole = sorted(folder.iterdir())[0]
    whole.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(DataError, match="changed"):
        rows[0]


def test_huge_blocks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockadapt.data.shards.parquet.LARGEST_BLOCK", 100)
    monkeypatch.setattr("lockadapt.data.shards.tar.LARGEST_RECORD", 100)
    with pytest.raises(SafetyError, match="row group 0"):
        rows_of("parquet", write_parquet(tmp_path / "parquet", 9))
    with pytest.raises(DataError, match="the record has"):
        rows_of("webdataset", write_tars(tmp_path / "tars", 9))[0]


@FORMATS
def test_listed_rows_hold_no_bytes_of_images(format: str, tmp_path: Path) -> None:
    folder = write(format, tmp_path / "shards", 20)
    rows = rows_of(format, folder)
    listed = rows.listed(5)
    assert [sample.where for sample in listed] == [rows.where(number) for number in range(5)]
    images = [image for sample in [*listed, *rows.few] for image in sample.images]
    assert all(image.data is None and image.path is None for image in images)
    for number, sample in enumerate(listed):
        (image,) = sample.images
        assert image.key == rows[number].images[0].key == f"sha256:{content_key(image, 10_000)}"
        assert open_image(image, 10_000).tobytes() == open_image(rows[number].images[0], 10_000).tobytes()
    first = sorted(folder.iterdir())[0]
    first.write_bytes(first.read_bytes()[:-1])
    again = rows_of(format, write(format, tmp_path / "shards", 20))
    kept = again.listed()
    again.shards._blocks.clear()
    first.write_bytes(b"other")
    with pytest.raises(DataError, match="changed since the run began"):
        open_image(kept[0].images[0], 10_000)


@FORMATS
def test_no_more_blocks_are_kept_than_a_window_has(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "WINDOW_ROWS", 8)
    rows = rows_of(format, write(format, tmp_path / "shards", 40))
    following = rows.drawn(SourceDraw(), 1, 0)
    for _ in range(40):
        rows[following(0)]
        assert len(rows.shards._blocks) <= {"parquet": 2, "webdataset": 1}[format]


@FORMATS
def test_shards_that_cannot_be_read(format: str, tmp_path: Path) -> None:
    folder = write(format, tmp_path / "shards", 40)
    whole = rows_of(format, folder)
    bad = sorted(folder.iterdir())[1]
    bad.write_bytes(bad.read_bytes()[:700])
    with pytest.raises(DataError, match="cannot be read") as caught:
        rows_of(format, folder, cache=tmp_path / "cache")
    assert bad.name in str(caught.value)
    with pytest.raises(DataError, match="1 of 5 shards cannot be read"):
        rows_of(format, folder, bad_rows=BadRows(0.1, print))
    notes: list[str] = []
    rows = rows_of(format, folder, cache=tmp_path / "cache", bad_rows=BadRows(0.2, notes.append))
    assert len(rows) == 32
    assert "left out 1 of 5 shards" in notes[0]
    assert [error.where for error in rows.unreadable] == [f"file://{bad}"]
    assert not (tmp_path / "cache").exists()  # it may be readable the next time
    assert rows.where(8) == whole.where(16)
    assert rows.identity != whole.identity


def test_a_row_group_that_cannot_be_read_is_passed_by(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "shards", 16, per_file=16)
    (file,) = folder.iterdir()
    group = pq.ParquetFile(file).metadata.row_group(1).column(0)
    data = bytearray(file.read_bytes())
    start = group.dictionary_page_offset or group.data_page_offset
    data[start : start + group.total_compressed_size] = bytes(group.total_compressed_size)
    file.write_bytes(data)
    rows = rows_of("parquet", folder)
    assert rows[3].where.endswith(":3")
    with pytest.raises(DataError, match="cannot be read") as caught:
        rows[4]
    assert caught.value.where == "00000.parquet: row group 1"
    assert [rows.successor(number) for number in (4, 5, 3, 8)] == [8, 8, 0, 9]
    allowed = Allowed(skip_rows=True, rows=0.5)
    log = BadRowLog("vqa", 16, allowed)
    log.write_into(tmp_path)
    drawn = DrawnRows(rows, encoded, log)
    assert [row.sample.where for row in drawn.take(range(3, 9))] == [
        f"00000.parquet:{number}" for number in (3, 8, 8, 8, 8, 8)
    ]
    entries = [json.loads(line) for line in (tmp_path / "bad_rows.jsonl").read_text().splitlines()]
    assert [entry["row"] for entry in entries] == [f"00000.parquet:{number}" for number in range(4, 8)]


def test_a_value_that_unpacks_to_more_than_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dictionary holds it once, whatever rows have it."""
    value = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array([bytes(10_000)]))
    pq.write_table(pa.table({"image": value}), tmp_path / "a.parquet", store_schema=False)
    monkeypatch.setattr("lockadapt.data.shards.parquet.LARGEST_UNTOLD", 1_000_000)
    rows = rows_of("parquet", tmp_path / "a.parquet")
    with pytest.raises(SafetyError, match="row group 0 unpacks to"):
        rows[0]


def test_bad_members_are_rows_with_their_names(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, data in (
            ("x/0.json", b"{"),
            ("x/1.json", b"{}"),
            ("x/2.png", png(1)),
            ("x/2.answer", b"\xff"),
        ):
            add(archive, name, data)
    rows = rows_of("webdataset", tmp_path / "a.tar", bad_rows=BadRows(0.5, print))
    for number, words in enumerate(("invalid JSON", "no column", "not UTF-8")):
        with pytest.raises(DataError, match=words) as caught:
            rows[number]
        assert (caught.value.where or "").startswith(f"a.tar:x/{number}")
    with pytest.raises(DataError, match="3 of 3 rows cannot be used"):
        rows.listed()


@pytest.mark.parametrize("nested", [False, True])
def test_class_labels_of_parquet_are_names_as_in_tables(nested: bool, tmp_path: Path) -> None:
    label = datasets.ClassLabel(names=["cat", "dog"])
    pictures = [{"bytes": png(number), "path": None} for number in range(3)]
    values: list[object] = [{"a": number % 2} for number in range(3)] if nested else [0, 1, 0]
    kinds = {"image": datasets.Image(), "caption": {"a": label} if nested else label}
    made = datasets.Dataset.from_dict({"image": pictures, "caption": values}, datasets.Features(kinds))
    (tmp_path / "shards").mkdir()
    made.to_parquet(str(tmp_path / "shards" / "0.parquet"))
    shards = open_shards("parquet", str(tmp_path / "shards"))
    names = ["cat", "dog", "cat"]
    assert [shards.row(n)["caption"] for n in range(3)] == (
        [{"a": name} for name in names] if nested else names
    )


@pytest.mark.parametrize(
    "told", ['{"info": {"features": {"caption": {"_type": "ClassLabel"}}}}', '"ClassLabel"']
)
def test_features_that_tell_nothing_are_passed_by(told: str, tmp_path: Path) -> None:
    table = pa.table({"caption": [1]}).replace_schema_metadata({"huggingface": told})
    pq.write_table(table, tmp_path / "0.parquet")
    assert open_shards("parquet", str(tmp_path)).row(0) == {"caption": 1}


def test_a_class_that_has_no_name_is_an_error_of_its_row(tmp_path: Path) -> None:
    told = {"info": {"features": {"caption": {"_type": "ClassLabel", "names": ["cat"]}}}}
    table = pa.table({"caption": [0, 7]}).replace_schema_metadata({"huggingface": json.dumps(told)})
    pq.write_table(table, tmp_path / "0.parquet")
    shards = open_shards("parquet", str(tmp_path))
    assert shards.row(0) == {"caption": "cat"}
    with pytest.raises(DataError) as caught:
        shards.row(1)
    assert caught.value.where == "0.parquet:1"


@FORMATS
def test_images_are_not_gone_through(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "LOOKED_AT", 3)
    rows = rows_of(format, write(format, tmp_path / "shards", 40))
    assert len(list(rows.one_of_each())) == len(rows.images_by_key()) == 3
