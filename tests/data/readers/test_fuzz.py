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

FORMATS = ("jsonl", "csv", "llava", "coco", "vqa-v2", "refcoco")
FIXED = {"coco": "caption", "vqa-v2": "vqa", "refcoco": "grounding"}

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("<image>")
roles = st.sampled_from(["user", "assistant", "system", "human", "gpt", "x"])
keys = st.sampled_from([*FIELDS, "role", "from", "content", "value", "type", "text", "path"])
anything = st.recursive(
    leaves | roles,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=6),
    max_leaves=12,
)
number, words = st.integers(0, 3) | anything, st.just("red") | anything
turns = st.lists(
    st.fixed_dictionaries(
        {"role": roles, "content": words | st.lists(st.just({"type": "image"}) | anything, max_size=3)}
    ),
    max_size=4,
)
usual = st.fixed_dictionaries(
    {"image": words},
    optional={
        **dict.fromkeys(("question", "answer", "caption", "prompt", "completion"), words),
        **{name: st.lists(words, max_size=3) | anything for name in ("answers", "captions")},
        **dict.fromkeys(("messages", "conversations"), turns | anything),
        **dict.fromkeys(("id", "image_id", "question_id", "category_id", "ann_id"), number),
        **dict.fromkeys(("box", "bbox"), st.lists(st.floats(), min_size=4, max_size=4) | anything),
        **dict.fromkeys(("phrase", "name"), words),
        **dict.fromkeys(("boxes", "sentences"), st.lists(anything, max_size=3)),
        "file_name": words,
        "multiple_choice_answer": words,
    },
)


@settings(max_examples=100, deadline=None)
@given(
    format=st.sampled_from(FORMATS),
    suffix=st.sampled_from([".jsonl", ".json", ".jsonl.gz"]),
    kind=st.sampled_from(KINDS),
    data=st.binary(max_size=200) | st.text(alphabet='[]{}",:\\u d8\n\r0.', max_size=60).map(str.encode),
)
def test_any_bytes(format: str, suffix: str, kind: str, data: bytes) -> None:
    _read(format, suffix, data, kind)


@pytest.mark.parametrize("format", ["jsonl", "llava", "coco", "vqa-v2", "refcoco"])
@settings(max_examples=40, deadline=None)
@given(rows=st.lists(usual | anything, min_size=1, max_size=3), kind=st.sampled_from(KINDS))
def test_any_json(format: str, kind: str, rows: list[Any]) -> None:
    if format in FIXED:
        tables = dict.fromkeys(("images", "questions", "annotations", "categories", "refs"), rows)
        _read(format, ".json", json.dumps(tables).encode(), kind)
    else:
        _read(format, ".jsonl", "\n".join(map(json.dumps, rows)).encode(), kind)


def _read(format: str, suffix: str, data: bytes, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a{suffix}")
        path.write_bytes(data)
        vqa = {"annotations": path, "split": "val2014"} if format == "vqa-v2" else {}
        try:
            samples = read_samples(format, Source(path=path, kind=FIXED.get(format, kind), **vqa))
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
