"""Runs on shards end with the same weights however they are cut: killed, resumed, on another world size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lockadapt.errors import RecipeError
from lockadapt.files import sha256_of
from lockadapt.recipe.read import load_recipe
from lockadapt.runs.record import read_record
from lockadapt.training.loop import train
from tests.support.interruption import QUIET
from tests.support.parallel_runs import recipe
from tests.support.ranks import Job, run_jobs
from tests.support.runs import values
from tests.support.shards import write
from tests.support.warm import Warm


def weights(folder: Path) -> str:
    return sha256_of(folder / "checkpoints" / "train" / "finished" / "trainable.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_killed_on_two_ranks_with_two_workers(format: str, tiny: Path, tmp_path: Path, warm: Warm) -> None:
    given = values(tiny, tmp_path)
    path = str(write(format, tmp_path / "shards", 40))
    given["objectives"]["vqa"]["train"] = {"format": format, "path": path}
    given["data"] = {"workers": 2, "cache": str(tmp_path / "cache")}
    file = recipe(tmp_path, "run", given, steps=5, save_every=2, batch_size=2)
    (tmp_path / "out").mkdir()
    whole, killed = (["train", file, "-o", str(tmp_path / "out" / name), "-q"] for name in "ab")
    outcomes = run_jobs(warm, tmp_path, [Job(whole), Job(killed, killed=(1, 4)), Job([*killed, "--resume"])])
    assert [code for _, code in outcomes[0].codes] == [0, 0], outcomes[0].stderr
    assert [1, -9] in outcomes[1].codes
    assert [code for _, code in outcomes[2].codes] == [0, 0], outcomes[2].stderr
    assert weights(tmp_path / "out" / "a") == weights(tmp_path / "out" / "b")


def test_keys_and_record(tiny: Path, tmp_path: Path) -> None:
    given = values(tiny, tmp_path)
    path = str(write("parquet", tmp_path / "shards", 20))
    given["objectives"]["vqa"]["train"] = [
        {"format": "parquet", "path": path, "weight": 1.0},
        {**given["objectives"]["vqa"]["train"], "weight": 1.0},
    ]
    given["data"] = {"cache": str(tmp_path / "cache")}
    given["training"] |= {"steps": 2}
    made = load_recipe(None, (), given).recipe
    train(made, tmp_path / "out", QUIET)
    recorded = read_record(tmp_path / "out").rows
    assert recorded is not None
    assert [(source.rows, source.share) for source in recorded["vqa"]] == [(20, 0.5), (8, 0.5)]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["rows"]["vqa"][0]["path"] == path
    with pytest.raises(RecipeError, match="streams its images"):
        train(load_recipe(None, ("data.features=memory",), given).recipe, tmp_path / "b", QUIET)
