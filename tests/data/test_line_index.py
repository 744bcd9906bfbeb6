"""The index of a file of rows finds every row where the reader finds it, and groups rows by their image."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockadapt.data import line_index, order
from lockadapt.data.line_index import LineIndex, Lines, open_index
from lockadapt.data.order import epoch_order
from lockadapt.data.readers.files import read_rows
from lockadapt.errors import DataError, LockadaptError, SafetyError


def index_of(file: Path, column: str | None = "image", limit: int | None = None) -> LineIndex:
    return open_index(Lines.of(file, column, limit), file.parent / "cache")


def groups_of(index: LineIndex) -> list[list[int]]:
    starts = index.starts.tolist()
    parts = itertools.pairwise(starts)
    return sorted(sorted(index.grouped[begin:end].tolist()) for begin, end in parts)


TEXTS = {
    "plain": '{"image": "a"}\n{"image": "b"}\n{"image": "a"}\n',
    "no end": '{"image": "a"}\n{"image": "b"}',
    "blank lines": '\n{"image": "a"}\n  \n\n{"image": "b"}\r\n\t\n  {"image": "a"}\n\n',
    "mark": '\ufeff{"image": "a"}\n{"image": "b"}\n',
    "odd": '{"image": 1}\n[2]\nnonsense\n{"image": ["x", "y"]}\n{"image": 1}\n{"images": ["x", "y"]}\n{"a": 3}\n',
    "null": '{"image": "a"}\n{"image": null}\n{"b": 1}\n{"image": "a"}\n',
    "long": "".join(json.dumps({"image": f"{n % 7}", "q": "x" * (n * 37 % 501)}) + "\n" for n in range(200)),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("size", [7, 1 << 20])
def test_rows_are_those_of_the_reader(
    tmp_path: Path, name: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_index, "_SCANNED", size)
    monkeypatch.setattr(line_index, "_PARSED", size)
    file = tmp_path / "rows.jsonl"
    file.write_text(TEXTS[name], encoding="utf-8")
    expected = list(read_rows(file))
    index = index_of(file)
    assert len(index) == len(expected)
    for row, (where, value) in enumerate(expected):
        assert f"{file.name}:{index.number(row)}" == where
        if not isinstance(value, LockadaptError):
            assert json.loads(index.line(row)) == value
    by_image: dict[str, list[int]] = {}
    for row, (_, value) in enumerate(expected):
        image: Any = value.get("image", value.get("images")) if isinstance(value, dict) else None
        by_image.setdefault(json.dumps(image) if image else f"row {row}", []).append(row)
    assert groups_of(index) == sorted(by_image.values())
    lengths = [len(line) for line in TEXTS[name].encode().splitlines()]
    assert lengths[index.number(index.longest[0]) - 1] >= max(lengths) - 4


def test_only_the_first_rows_and_no_groups(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(TEXTS["plain"])
    assert groups_of(index_of(file, limit=2)) == [[0], [1]]
    assert groups_of(index_of(file, None)) == [[0], [1], [2]]


def test_built_once_for_a_state_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(TEXTS["plain"])
    first = index_of(file)
    build, built = line_index._build, list[Path]()
    monkeypatch.setattr(line_index, "_build", lambda *given: (built.append(given[1]), build(*given)))
    assert index_of(file).sha256 == first.sha256
    assert not built
    (first.folder / "begins.bin").write_bytes(b"cut")
    assert index_of(file).line(1) == b'{"image": "b"}'
    assert len(built) == 1
    file.write_text(TEXTS["plain"].replace("b", "c"))
    os.utime(file, (5, 5))
    assert index_of(file).sha256 != first.sha256
    with pytest.raises(DataError, match="has changed"):
        first.line(0)


def test_what_is_no_file_of_rows_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n \n")
    with pytest.raises(DataError, match="no row"):
        index_of(file)
    file.write_bytes(b"\x80\x04pickle")
    with pytest.raises(SafetyError):
        index_of(file)
    assert not list((tmp_path / "cache").glob("*"))


@pytest.mark.parametrize("block", [3, 1000])
def test_an_epoch_is_a_permutation_whose_runs_share_an_image(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "BLOCK", block)
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 12, 40)
    owner = np.repeat(np.arange(40), sizes)
    rows = rng.permutation(len(owner)).astype(np.uint32)
    of_row = dict(zip(rows.tolist(), owner.tolist(), strict=True))
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint32)
    made = {
        (longest, seed): epoch_order(rows, starts, longest, seed, tmp_path).tolist()
        for longest in (1, 4)
        for seed in (3, 3, 4)
    }
    assert all(sorted(rows_of_epoch) == list(range(len(owner))) for rows_of_epoch in made.values())
    assert made[4, 3] == epoch_order(rows, starts, 4, 3, tmp_path).tolist() != made[4, 4] != made[1, 4]
    changes = {
        longest: sum(of_row[a] != of_row[b] for a, b in itertools.pairwise(made[longest, 3]))
        for longest in (1, 4)
    }
    runs = int(sum(-(-size // 4) for size in sizes))
    assert changes[4] < runs < changes[1]
    assert not list(tmp_path.iterdir())
