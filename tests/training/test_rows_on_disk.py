"""A run whose rows stay on disk trains, resumes and leaves out what it may, the same every time."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from lockadapt.architectures.assemble import Assembled
from lockadapt.building.experiment import build_experiment
from lockadapt.building.tables import build_tables
from lockadapt.data.encode import Encoder
from lockadapt.data.quick_encode import QuickText
from lockadapt.data.sample import Sample
from lockadapt.errors import DiskError, RecipeError, VerificationError
from lockadapt.recipe.read import load_recipe
from lockadapt.recipe.schema import Recipe
from lockadapt.training.drawing import drawn_rows
from lockadapt.training.loop import train
from lockadapt.training.rows import load_samples
from tests import ON_GPU
from tests.support.interruption import QUIET, interrupted
from tests.support.ranks import Job, run_jobs
from tests.support.runs import values
from tests.support.warm import Warm


def made(tiny: Path, folder: Path, *overrides: str, rows: list[dict[str, Any]] | None = None) -> Recipe:
    given = values(tiny, folder)
    given["training"] |= {"steps": 6, "save_every": 2, "log_every": 1}
    if rows:
        file = Path(given["objectives"]["vqa"]["train"]["path"])
        file.write_text(file.read_text() + "".join(json.dumps(row) + "\n" for row in rows))
    common = ("data.rows=disk", f"data.cache={folder / 'cache'}")
    return load_recipe(None, (*common, *overrides), given).recipe


def weights(folder: Path) -> dict[str, bytes]:
    tensors = load_file(folder / "checkpoints" / "train" / "finished" / "trainable.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


BAD = [
    {"image": "red.png", "question": "?", "answer": ""},
    {"image": "gone.png", "question": "what color is it?", "answer": "red"},
]


@pytest.mark.parametrize("features", ["none", "memory"])
def test_resumed_and_with_workers_the_weights_are_the_same(
    features: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip = ("data.on_bad_row=skip", "data.max_bad_row_fraction=0.5", "data.on_bad_image=skip")
    recipe = made(tiny, tmp_path, f"data.features={features}", "data.max_bad_fraction=0.5", *skip, rows=BAD)
    train(recipe, tmp_path / "whole", QUIET)
    interrupted(recipe, tmp_path / "resumed", 3, monkeypatch)
    train(recipe, tmp_path / "resumed", QUIET, resume=True)
    expected = weights(tmp_path / "whole")
    assert weights(tmp_path / "resumed") == expected
    with_workers = recipe.model_copy(update={"data": recipe.data.model_copy(update={"workers": 1})})
    train(with_workers, tmp_path / "workers", QUIET)
    assert weights(tmp_path / "workers") == expected
    for run in ("whole", "resumed", "workers"):
        lines = [json.loads(line) for line in (tmp_path / run / "bad_rows.jsonl").read_text().splitlines()]
        assert sorted(line["row"] for line in lines) == ["rows.jsonl:10", "rows.jsonl:9"]
    rows = Path(recipe.objectives["vqa"].train.path)
    rows.write_text(rows.read_text().replace("blue", "pink"))
    interrupted(recipe, tmp_path / "other", 3, monkeypatch)
    rows.write_text(rows.read_text().replace("pink", "blue"))
    with pytest.raises(VerificationError, match="rows of vqa"):
        train(recipe, tmp_path / "other", QUIET, resume=True)


def test_which_rows_stay_on_disk(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = made(tiny, tmp_path)

    def on_disk(choice: str, **source: Any) -> bool:
        given = recipe.model_dump(mode="json")
        given["data"]["rows"] = choice
        given["objectives"]["vqa"]["train"] |= source
        return "vqa" in build_tables(build_experiment(load_recipe(None, (), given).recipe))

    assert [on_disk(choice) for choice in ("auto", "memory", "disk")] == [False, False, True]
    monkeypatch.setattr("lockadapt.building.tables.IN_MEMORY", 7)
    monkeypatch.setattr("lockadapt.building.tables.SHORTEST_ROW", 1)
    assert on_disk("auto")
    assert not on_disk("auto", limit=7)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    listed = tmp_path / "rows.json"
    listed.write_text(json.dumps(rows))
    assert on_disk("auto", path=str(listed))
    assert not on_disk("auto", path=str(listed), limit=7)
    captions = tmp_path / "captions.jsonl"
    captions.write_text("".join(json.dumps({**row, "answers": ["a", "a"]}) + "\n" for row in rows))
    assert on_disk("auto", path=str(captions))
    inline = base64.b64encode((tmp_path / "pictures" / "red.png").read_bytes()).decode()
    listed.write_text(json.dumps([{**row, "image": f"data:image/png;base64,{inline}"} for row in rows]))
    assert not on_disk("auto", path=str(listed))
    with pytest.raises(RecipeError, match="no whole files"):
        on_disk("disk", path=str(listed))


def test_few_rows_of_a_list_are_not_read_to_be_counted(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = made(tiny, tmp_path, "data.rows=auto").model_dump(mode="json")
    listed = tmp_path / "rows.json"
    rows = (tmp_path / "rows.jsonl").read_text().splitlines()
    listed.write_text(json.dumps(list(map(json.loads, rows))))
    recipe["objectives"]["vqa"]["train"]["path"] = str(listed)
    experiment = build_experiment(load_recipe(None, (), recipe).recipe)
    monkeypatch.setattr("lockadapt.building.tables.SHORTEST_ROW", 1)
    read: list[str] = []
    monkeypatch.setattr(
        "lockadapt.building.tables.iterate_samples", lambda format, source: read.append(format) or iter(())
    )
    monkeypatch.setattr("lockadapt.building.tables.IN_MEMORY", len(rows) + 1)  # a bracket is the list's own
    assert build_tables(experiment) == {}
    assert not read
    monkeypatch.setattr("lockadapt.building.tables.IN_MEMORY", len(rows) - 1)
    build_tables(experiment)
    assert read


def test_where_nothing_can_be_written_rows_are_in_memory(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lockadapt.building.tables.IN_MEMORY", 7)
    monkeypatch.setattr("lockadapt.building.tables.SHORTEST_ROW", 1)
    recipe = made(tiny, tmp_path, f"data.cache={tmp_path / 'rows.jsonl'}")
    with pytest.raises(DiskError):
        build_tables(build_experiment(recipe))
    recipe = made(tiny, tmp_path, f"data.cache={tmp_path / 'rows.jsonl'}", "data.rows=auto")
    notes: list[str] = []
    assert build_tables(build_experiment(recipe), notes.append) == {}
    assert "no index can be written" in notes[0]


def test_rows_of_several_samples(tiny: Path, tmp_path: Path) -> None:
    recipe = made(tiny, tmp_path)
    given = recipe.model_dump(mode="json")
    rows = tmp_path / "captions.jsonl"
    rows.write_text((json.dumps({"image": "red.png", "captions": ["a", "b"]}) + "\n") * 4)
    source = {"format": "jsonl", "path": str(rows), "images": given["objectives"]["vqa"]["train"]["images"]}
    given["objectives"] = {"caption": {"train": source}}
    (table,) = build_tables(build_experiment(load_recipe(None, (), given).recipe)).values()
    assert [sample.answer for sample in table] == ["a", "b"] * 4


def test_in_memory_and_on_disk_teach_the_same_samples(tiny: Path, tmp_path: Path) -> None:
    experiments = [
        build_experiment(made(tiny, tmp_path, f"data.rows={choice}")) for choice in ("memory", "disk")
    ]
    memory, disk = (load_samples(experiment, QUIET)["train"]["vqa"] for experiment in experiments)
    assert isinstance(memory, list)
    assert not isinstance(disk, list)
    assert list(disk) == memory


def test_a_row_that_shows_earlier_ones_wrong_ends_the_run(
    tiny: Path, tmp_path: Path, assembled: Assembled
) -> None:
    experiment = build_experiment(made(tiny, tmp_path))
    encoder = Encoder(assembled.processor, 64)
    rows = drawn_rows(experiment, encoder, build_tables(experiment))["vqa"]
    assert len(rows.few) == 8
    assert len(rows.take([0, 1])) == 2
    write = encoder.quick.write

    def otherwise(sample: Sample) -> QuickText | None:
        text = write(sample)
        return text and text._replace(texts=(text.texts[0] + "!", *text.texts[1:]), audited=True)

    encoder.quick.write = otherwise  # type: ignore[method-assign]
    with pytest.raises(VerificationError, match="otherwise than the first ones"):
        rows.take([2, 3])


@pytest.mark.slow
@pytest.mark.skipif(ON_GPU, reason="gloo, on CPUs")
def test_two_processes_draw_the_rows_of_one(warm: Warm, tiny: Path, tmp_path: Path) -> None:
    skips = [f"data.{key}=skip" for key in ("on_bad_row", "on_bad_image")]
    limits = [f"data.{key}=0.5" for key in ("max_bad_row_fraction", "max_bad_fraction")]
    recipe = made(tiny, tmp_path, "data.features=none", "training.batch_size=2", *skips, *limits, rows=BAD)
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    jobs = [
        Job(["train", "two.yaml", "-o", "two", "-q"]),
        Job(["train", "two.yaml", "training.accumulation=2", "-o", "one", "-q"], 1),
    ]
    for outcome in run_jobs(warm, tmp_path, jobs):
        assert [code for _, code in outcome.codes] == [0] * len(outcome.codes), outcome.stderr
    assert weights(tmp_path / "two") == weights(tmp_path / "one")
    for run in ("two", "one"):
        lines = [json.loads(line) for line in (tmp_path / run / "bad_rows.jsonl").read_text().splitlines()]
        assert {line["row"] for line in lines} == {"rows.jsonl:9", "rows.jsonl:10"}
