"""Any bytes as a data file give samples or a typed error, and nothing else."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockadapt.data.readers import Source, read_samples
from lockadapt.data.readers.source import FIELDS, KINDS
from lockadapt.errors import LockadaptError

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("<image>")
roles = st.sampled_from(["user", "assistant", "system", "human", "gpt", "x"])
keys = st.sampled_from([*FIELDS, "role", "from", "content", "value", "type", "text", "conversations", "path"])
values = st.recursive(
    leaves | roles,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=6),
    max_leaves=20,
)


@pytest.mark.parametrize("format", ["jsonl", "csv", "llava", "coco", "vqa-v2"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.gz"])
@settings(max_examples=30, deadline=None)
@given(data=st.binary(max_size=200) | st.text(alphabet='[]{}",:\\u d8\n\r0.', max_size=60).map(str.encode))
def test_any_bytes(format: str, suffix: str, data: bytes) -> None:
    _read(format, suffix, data, KINDS[len(data) % 3])


@pytest.mark.parametrize("format", ["jsonl", "llava", "coco", "vqa-v2"])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(rows=st.lists(values, min_size=1, max_size=3))
def test_any_json(format: str, kind: str, rows: list[Any]) -> None:
    if format in ("coco", "vqa-v2"):
        tables = ("images", "questions", "annotations")
        data = json.dumps(dict.fromkeys(tables, rows))
        _read(format, ".json", data.encode(), "caption" if format == "coco" else "vqa")
    else:
        _read(format, ".jsonl", "\n".join(map(json.dumps, rows)).encode(), kind)


def _read(format: str, suffix: str, data: bytes, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a{suffix}")
        path.write_bytes(data)
        annotations = path if format == "vqa-v2" else None
        try:
            samples = read_samples(format, Source(path=path, kind=kind, annotations=annotations, split=None))
        except LockadaptError as error:
            str(error).encode()
            return
    assert samples
    for sample in samples:
        assert sum(turn.images for turn in sample.turns) == len(sample.images)
        assert sample.turns[-1].role == "assistant"
        assert sample.answer
        assert sample.references
        assert "<image>" not in "".join(turn.text for turn in sample.turns)
