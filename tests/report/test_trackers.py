"""Trackers receive the followed pictures with their predictions: each against the real package, without a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lockadapt import train
from lockadapt.runs.run_folder import FOLLOWED
from tests.support.runs import values

pytestmark = pytest.mark.slow


def run_with(tracker: str, tiny: Path, folder: Path) -> list[str]:
    """Trains two steps with two validations; gives the answers that were followed."""
    recipe = values(tiny, folder)
    recipe["objectives"]["vqa"]["validation"] = recipe["objectives"]["vqa"]["train"]
    recipe["training"] |= {"steps": 2, "validate_every": 1, "report_to": [tracker]}
    train(recipe, output=folder / "run", quiet=True)
    lines = (folder / "run" / FOLLOWED).read_text().splitlines()
    return [json.loads(line)["answer"] for line in lines]


def test_tensorboard(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    answers = run_with("tensorboard", tiny, tmp_path)
    (folder,) = (tmp_path / "run").rglob("followed")
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    images = events.Tags()["images"]
    assert len(images) == len(answers) / 2
    assert [event.step for event in events.Images(images[0])] == [1, 2]
    assert events.Images(images[0])[0].encoded_image_string.startswith(b"\x89PNG")
    (name,) = events.Tags()["tensors"]
    text = events.Tensors(name)[-1].tensor_proto.string_val[0].decode()
    assert text.count("\n") == len(answers) / 2 + 1
    assert f"| {answers[-1]} |" in text.splitlines()[-1]


def test_wandb(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    import wandb

    answers = run_with("wandb", tiny, tmp_path)
    assert wandb.run is not None
    summary = dict(wandb.run.summary)
    (name,) = [key for key in summary if key.startswith("followed/")]
    logged = summary[name]
    wandb.finish()
    last = answers[len(answers) // 2 :]
    assert [caption.split("\n")[1].split(" (expected")[0] for caption in logged["captions"]] == last
    assert len(list((tmp_path / "wandb").rglob("*.png"))) >= 4  # pictures are stored once a step


def test_trackio(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio", reason="needs trackio")
    from trackio import utils
    from trackio.sqlite_storage import SQLiteStorage

    for module in (utils, __import__("trackio.sqlite_storage", fromlist=["TRACKIO_DIR"])):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio", raising=False)
    answers = run_with("trackio", tiny, tmp_path)
    (project,) = SQLiteStorage.get_projects()
    (run,) = SQLiteStorage.get_runs(project)
    tables = [
        value
        for line in SQLiteStorage.get_logs(project, run)
        for key, value in line.items()
        if key.startswith("followed/")
    ]
    assert len(tables) == 2
    rows = tables[-1]["_value"]
    assert [row["answer"] for row in rows] == answers[len(answers) // 2 :]
    assert all(row["picture"]["_type"] == "trackio.image" for row in rows)
