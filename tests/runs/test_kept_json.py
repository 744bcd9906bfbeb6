"""JSON that runs keep beside run.json: damaged files are refused with the line and the value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lockadapt.errors import VerificationError
from lockadapt.runs import kept_json
from lockadapt.runs.curves import loss_name, read_curves

LINE = {"stage": "train", "step": 1, "vqa/loss": 2.0}
PREDICTION = {
    "objective": "vqa",
    "where": "rows:1",
    "images": ["0.png"],
    "question": "what?",
    "answer": "red",
}
PREDICTED = {**PREDICTION, "truth": "red"}


@pytest.mark.parametrize("changes", [{"step": "boo"}, {"step": -5}, {"step": 1e300}, {"stage": ["train"]}])
def test_lines_of_metrics_have_steps(changes: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps(LINE) + "\n" + json.dumps({**LINE, **changes}) + "\n")
    with pytest.raises(VerificationError, match="is damaged") as error:
        read_curves(file)
    assert str(error.value.where).endswith("metrics.jsonl:2")


def test_what_no_axis_holds_is_not_drawn_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = [
        LINE,
        {**LINE, "vqa/loss": float("inf")},
        {**LINE, "vqa/loss": float("nan")},
        {**LINE, "step": 4},
    ]
    lines.append({**LINE, "vqa/loss": 10**400})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"stage": "tr')
    assert read_curves(file).curves(loss_name) == {"vqa": [(1, 2.0), (4, 2.0)]}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("SCORES", [1, 2]),
        ("SCORES", {"seeing": 7}),
        ("SCORES", {"seeing": {"vqa": [1]}}),
        ("TOKENS", {"vqa": [[["a"]]]}),
        ("TOKENS", {"vqa": "text"}),
        ("TOKENS", []),
    ],
)
def test_files_hold_what_their_readers_take(kind: str, value: Any, tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    file.write_text(json.dumps(value))
    with pytest.raises(VerificationError, match="is damaged"):
        getattr(kept_json, kind).read(file, {})


@pytest.mark.parametrize(
    "changes", [{"images": "0.png"}, {"images": [{}]}, {"answer": 7}, {"truth": {"a": 1}}, {"objective": []}]
)
@pytest.mark.parametrize("kind", ["PREDICTIONS", "FOLLOWED"])
def test_predictions_hold_texts(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    file, row = tmp_path / "rows.jsonl", {**PREDICTED, "stage": "train", "step": 2}
    file.write_text(json.dumps(row) + "\n")
    assert getattr(kept_json, kind).read_lines(file) == [row]
    file.write_text(json.dumps({**row, **changes}) + "\n")
    with pytest.raises(VerificationError, match="is damaged"):
        getattr(kept_json, kind).read_lines(file)


def test_a_folder_or_bytes_in_place_of_a_file_are_told(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\n")
    with pytest.raises(VerificationError, match="is no file"):
        kept_json.SCORES.read(tmp_path / "folder", {})
    with pytest.raises(VerificationError, match="UTF-8"):
        kept_json.METRICS.read_lines(tmp_path / "bytes")
    assert kept_json.SCORES.read(tmp_path / "nothing", {}) == {}
