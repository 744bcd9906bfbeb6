"""The benchmark of encoding compares three formats, and sees a row that comes out otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockadapt.data.readers import read_samples
from lockadapt.quickstart.tour import ASSETS


@pytest.mark.usefixtures("scripts")
def test_rows_of_every_format_are_alike_both_ways(tmp_path: Path) -> None:
    from encoding import measure, write_rows

    for name, source in write_rows(40, tmp_path).items():
        done = measure(name, read_samples(name, source), ASSETS / "llm")
        assert (done.format, done.rows, done.image_tokens, done.different) == (name, 40, 576, 0)


@pytest.mark.usefixtures("scripts")
def test_other_ids_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import encoding

    source = encoding.write_rows(10, tmp_path)["jsonl"]
    monkeypatch.setattr(encoding, "transformers_ids", lambda processor, sample: [1])
    assert encoding.measure("jsonl", read_samples("jsonl", source), ASSETS / "llm").different == 10
