"""Sources of an objective give their shares of its rows, each in its own order, in memory and on disk alike."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lockadapt.architectures.assemble import Assembled
from lockadapt.data.bad_rows import Allowed, BadRowLog
from lockadapt.data.drawn import DrawnRows
from lockadapt.data.encode import Encoded, Encoder
from lockadapt.data.mixture import Draws, MixedDataset, MixtureSampler
from lockadapt.data.readers import LINE_RULES, Source, read_samples
from lockadapt.data.sample import question_answer
from lockadapt.data.sources import SourceDraw
from lockadapt.data.stored import JoinedRows
from lockadapt.data.table import RowFile, Table


def in_memory(*sizes: int) -> list[Encoded]:
    empty, sample = np.zeros(1, np.int32), question_answer("q", "a", [], "rows:1")
    return [
        Encoded(empty, empty, (), replace(sample, source=number))
        for number, size in enumerate(sizes)
        for _ in range(size)
    ]


def on_disk(folder: Path, assembled: Assembled, *sizes: int) -> DrawnRows:
    Image.new("RGB", (8, 8)).save(folder / "0.png")
    tables = []
    for number, size in enumerate(sizes):
        file = folder / f"{number}.jsonl"
        rows = [{"image": "0.png", "question": f"{number} {row}?", "answer": "a"} for row in range(size)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = Source(file, "vqa")
        tables.append(Table(RowFile(source, LINE_RULES["jsonl"](source)), folder / "cache"))
    rows = JoinedRows(tables)
    encode = Encoder(assembled.processor, 64).encode
    return DrawnRows(rows, encode, BadRowLog("vqa", len(rows), Allowed(skip_rows=True, rows=1.0)))


def drawn(items: Sequence[Encoded], sources: Sequence[SourceDraw], batches: int, seed: int = 0) -> list[int]:
    draws = Draws({"vqa": 1.0}, {"vqa": 5}, batches, seed, {"vqa": 1}, 1, {"vqa": sources})
    return [row for batch in MixtureSampler(MixedDataset({"vqa": items}), draws) for row in batch]


@pytest.mark.parametrize("kept", ["memory", "disk"])
def test_each_source_gives_its_share(kept: str, tmp_path: Path, assembled: Assembled) -> None:
    items = in_memory(20, 5, 15) if kept == "memory" else on_disk(tmp_path, assembled, 20, 5, 15)
    weighted = [SourceDraw(1.0), SourceDraw(2.0), SourceDraw(1.0)]
    rows = drawn(items, weighted, 16)
    for count in range(1, len(rows) + 1):
        shares = Counter("abbc"[0 if row < 20 else 1 if row < 25 else 3] for row in rows[:count])
        for name, weight in (("a", 1), ("b", 2), ("c", 1)):
            assert abs(shares[name] - count * weight / 4) < 3
    # Of a source every row is seen before any is seen again.
    small = [row for row in rows if 20 <= row < 25]
    for start in range(0, len(small) - 4, 5):
        assert set(small[start : start + 5]) == set(range(20, 25))
    assert drawn(items, weighted, 16) == rows
    assert drawn(items, weighted, 16, seed=1) != rows
    # Without weights an epoch is one of every source.
    assert sorted(drawn(items, [SourceDraw()] * 3, 8)) == list(range(40))


@pytest.mark.parametrize("kept", ["memory", "disk"])
def test_a_source_may_keep_its_order(kept: str, tmp_path: Path, assembled: Assembled) -> None:
    items = in_memory(20, 20) if kept == "memory" else on_disk(tmp_path, assembled, 20, 20)
    rows = drawn(items, [SourceDraw(shuffle=False), SourceDraw()], 16)
    assert [row for row in rows if row < 20] == [*range(20), *range(20)]
    shuffled = [row for row in rows if row >= 20]
    assert sorted(shuffled[:20]) == list(range(20, 40)) != shuffled[:20] != shuffled[20:]


def test_sources_on_disk_are_those_in_memory(tmp_path: Path, assembled: Assembled) -> None:
    rows = on_disk(tmp_path, assembled, 6, 3)
    read = [s for n in range(2) for s in read_samples("jsonl", Source(tmp_path / f"{n}.jsonl", "vqa"))]
    expected = [replace(sample, source=int(number >= 6)) for number, sample in enumerate(read)]
    assert rows.table[:] == expected == rows.table.few
    assert [row.sample for row in rows.take([7, 0, -1 % 9])] == [expected[7], expected[0], expected[8]]
    assert rows.table.where(7) == "1.jsonl:2"
    assert rows.table.images == 2
    assert rows.table.identity != rows.table.parts[0].identity


def test_the_next_good_row_is_of_the_same_source(tmp_path: Path, assembled: Assembled) -> None:
    rows = on_disk(tmp_path, assembled, 3, 3)
    files = [tmp_path / "0.jsonl", tmp_path / "1.jsonl"]
    for file in files:
        lines = file.read_text().splitlines()
        file.write_text("\n".join([*lines[:2], '{"image": "0.png", "question": "?", "answer": ""}']) + "\n")
    sources = [Source(file, "vqa") for file in files]
    tables = [Table(RowFile(s, LINE_RULES["jsonl"](s)), tmp_path / "cache") for s in sources]
    joined = DrawnRows(JoinedRows(tables), rows.encode, rows.log)
    assert [row.sample.where for row in joined.take([2, 5])] == ["0.jsonl:1", "1.jsonl:1"]
