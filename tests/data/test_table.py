"""Rows on disk are the reader's rows, token by token; in the place of a bad one stands the next good one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lockadapt.architectures.assemble import Assembled
from lockadapt.data.bad_rows import FILE, Allowed, BadRowLog
from lockadapt.data.drawn import DrawnRows
from lockadapt.data.encode import Encoder
from lockadapt.data.problems import BadRows
from lockadapt.data.readers import LINE_RULES, Source, read_samples
from lockadapt.data.table import RowFile, Table, allowance
from lockadapt.errors import DataError, SafetyError


def pictures(folder: Path) -> None:
    Image.new("1", (200, 200)).save(folder / "big.png")
    for number in range(5):
        Image.new("RGB", (8, 8), (number * 40, 0, 0)).save(folder / f"{number}.png")


def file_of(folder: Path, rows: list[Any]) -> Path:
    pictures(folder)
    file = folder / "rows.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def table(source: Source, format: str = "jsonl") -> Table:
    return Table(RowFile(source, LINE_RULES[format](source)), Path(source.path).parent / "cache")


def question(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "image": f"{number % 5}.png",
        "question": f"what is {number}?",
        "answer": f"it is {number}",
        **changes,
    }


def said(number: int) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>\nwho is {number}?"}, {"from": "gpt", "value": "I am"}]
    return {"id": number, "image": f"{number % 5}.png", "conversations": turns}


@pytest.mark.parametrize(("format", "kind", "row"), [("jsonl", "vqa", question), ("llava", "dialogue", said)])
def test_rows_are_the_readers(tmp_path: Path, assembled: Assembled, format: str, kind: str, row: Any) -> None:
    source = Source(file_of(tmp_path, [row(number) for number in range(23)]), kind, limit=21)
    samples, rows = read_samples(format, source), table(source, format)
    assert list(rows) == samples == rows[:]
    assert rows[-1] == samples[20]
    expected = Encoder(assembled.processor, 64).encode(samples).encoded
    encoder = Encoder(assembled.processor, 64)
    drawn = DrawnRows(rows, encoder.encode, BadRowLog(kind, 21, Allowed()))
    for numbers in ([3, 20, 0], list(range(21)), [7]):
        for number, made in zip(numbers, drawn.take(numbers), strict=True):
            assert np.array_equal(made.input_ids, expected[number].input_ids)
            assert np.array_equal(made.labels, expected[number].labels)
            assert made.images == expected[number].images
            assert made.sample == samples[number]
    assert len(rows.images_by_key()) == 5


BAD = [
    *(question(number) for number in range(4)),
    "no json",
    question(5, answer=" "),
    question(6, image="gone.png"),
    *(question(number) for number in range(7, 10)),
    question(10, question="long " * 90),
    question(0),
    question(12, image="big.png"),
]


def drawn_rows(folder: Path, assembled: Assembled, allowed: Allowed, opened: bool = True) -> DrawnRows:
    source = Source(file_of(folder, BAD), "vqa")
    rows = table(source)
    log = BadRowLog("vqa", len(rows), allowed)
    log.write_into(folder)
    encoder = Encoder(assembled.processor, 64)
    return DrawnRows(rows, encoder.encode, log, 10_000 if opened else None)


def test_the_next_good_row_stands_for_a_bad_one(tmp_path: Path, assembled: Assembled) -> None:
    allowed = Allowed(True, True, 0.2, 0.2)
    drawn = drawn_rows(tmp_path, assembled, allowed)
    assert [row.sample.where for row in drawn.take([3, 4, 10, 6, 5, 11, 12])] == [
        *("rows.jsonl:4", "rows.jsonl:8", "rows.jsonl:12", "rows.jsonl:8", "rows.jsonl:8", "rows.jsonl:12"),
        "rows.jsonl:1",
    ]
    assert drawn[7].images[0].picture.getpixel((0, 0)) == (80, 0, 0)
    assert drawn[7].images[0].key == str(tmp_path / "2.png")
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert [(line["row"], line["kind"]) for line in lines] == [
        *(
            ("rows.jsonl:5", "row"),
            ("rows.jsonl:6", "row"),
            ("rows.jsonl:7", "image"),
            ("rows.jsonl:11", "length"),
            ("rows.jsonl:13", "image"),
        )
    ]
    # The other process, and the run that goes on, know of them.
    drawn_rows(tmp_path, assembled, allowed).take([4, 10])
    assert len((tmp_path / FILE).read_text().splitlines()) == 5


def test_bad_images_that_are_known_and_features_that_are_kept(tmp_path: Path, assembled: Assembled) -> None:
    drawn = drawn_rows(tmp_path, assembled, Allowed(False, True, 0.0, 0.1), opened=False)
    drawn.table.bad_images = frozenset({str(tmp_path / "gone.png")})
    row = drawn[6]
    assert row.sample.where == "rows.jsonl:8"
    assert row.images[0].picture is None
    assert str(tmp_path / "gone.png") not in drawn.table.images_by_key()


@pytest.mark.parametrize(
    ("allowed", "row", "message"),
    [
        (Allowed(), 4, "invalid JSON"),
        (Allowed(False, True, 0.0, 1.0), 5, "answer is empty"),
        (Allowed(True, False, 1.0, 0.0), 6, "gone.png"),
        (Allowed(True, True, 0.1, 0.0), 4, "2 of 13 rows cannot be used so far"),
        (Allowed(True, True, 1.0, 0.0), 6, "1 of 13 rows cannot be used so far"),
    ],
)
def test_what_may_not_be_left_out(
    tmp_path: Path, assembled: Assembled, allowed: Allowed, row: int, message: str
) -> None:
    with pytest.raises(DataError, match=message) as raised:
        drawn_rows(tmp_path, assembled, allowed)[row]
    assert (raised.value.where or "").startswith("rows.jsonl:")


def test_what_is_refused_for_safety_is_never_left_out(tmp_path: Path, assembled: Assembled) -> None:
    drawn = drawn_rows(tmp_path, assembled, Allowed(True, True, 1.0, 1.0))
    file = Path(drawn.table.source.path)
    file.write_text(json.dumps(question(0, image="../x.png")) + "\n")
    source = Source(file, "vqa")
    drawn = DrawnRows(table(source), drawn.encode, drawn.log)
    with pytest.raises(SafetyError):
        drawn.take([0])


def test_rows_that_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockadapt.data.table.LOOKED_AT", 20)
    notes: list[str] = []
    bad = [question(number, **({"answer": ""} if number % 10 == 3 else {})) for number in range(200)]
    for row in bad:
        row["image"] = f"{row['question'][8:-1][:-1] or 0}.png"
    file = file_of(tmp_path, bad)
    rows = table(Source(file, "vqa"))
    with pytest.raises(DataError, match="answer is empty"):
        len(rows.few)
    rows = table(Source(file, "vqa", bad_rows=BadRows(0.1, notes.append)))
    assert 15 <= len(rows.few) < len(rows.looked_at) < 40
    assert "left out" in notes[0]
    assert [sample.where for sample in rows.few] == [sample.where for sample in table(rows.source).few]
    keys = {sample.images[0].key for sample in rows.few}
    assert all(
        sample in rows.few for sample in read_samples("jsonl", rows.source) if sample.images[0].key in keys
    )


def test_several_samples_a_row(tmp_path: Path) -> None:
    rows = [{"image": "0.png", "captions": ["a", "b"]}] * 3
    held = table(Source(file_of(tmp_path, rows), "caption"))
    assert not held.is_single
    with pytest.raises(DataError, match="2 samples"):
        held[0]
    assert table(Source(file_of(tmp_path, [question(1)]), "vqa")).is_single


def test_a_sample_may_be_worse_by_chance() -> None:
    assert allowance(0.01, 100, 100) == 0.01
    assert 0.01 < allowance(0.01, 2000, 10**6) < 0.02
    assert allowance(0.0, 2000, 10**6) == 0.0
