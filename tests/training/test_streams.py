"""Runs on shards end with the same weights however they are cut: killed, resumed, on another world size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from lockadapt.errors import RecipeError
from lockadapt.files import sha256_of
from lockadapt.recipe.read import load_recipe
from lockadapt.runs.record import read_record
from lockadapt.training.loop import train
from tests.support.interruption import QUIET
from tests.support.parallel_runs import losses, recipe
from tests.support.parallel_runs import weights as trained
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


@pytest.mark.slow
@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_a_run_goes_on_on_another_number_of_processes(
    format: str, tiny: Path, tmp_path: Path, warm: Warm
) -> None:
    given = values(tiny, tmp_path)
    path = str(write(format, tmp_path / "shards", 12))
    given["objectives"]["vqa"]["train"] = {"format": format, "path": path}
    given["data"] = {"workers": 2, "cache": str(tmp_path / "cache")}
    lengths = {"steps": 6, "save_every": 2}
    files = {1: recipe(tmp_path, "one", given, batch_size=4, **lengths)}
    files[2] = recipe(tmp_path, "two", given, batch_size=2, **lengths)
    (tmp_path / "out").mkdir()
    began = [Job(["train", files[n], "-o", str(tmp_path / "out" / str(n)), "-q"], n) for n in (1, 2)]
    assert [outcome.first for outcome in run_jobs(warm, tmp_path, began)] == [0, 0]
    resumed = []
    for before, now in ((1, 2), (2, 1)):
        folder = shutil.copytree(tmp_path / "out" / str(before), tmp_path / "out" / f"{before}-on-{now}")
        for end in ("finished", "checkpoint-6"):
            shutil.rmtree(folder / "checkpoints" / "train" / end)
        resumed.append(Job(["train", files[before], "-o", str(folder), "--resume"], now))
    outcomes = run_jobs(warm, tmp_path, resumed)
    for outcome in outcomes:
        assert "going on from checkpoint-4" in outcome.stderr, outcome
    assert {code for outcome in outcomes for _, code in outcome.codes} == {0}
    whole = losses(tmp_path / "out" / "1")
    for name in ("2", "1-on-2", "2-on-1"):
        assert losses(tmp_path / "out" / name) == pytest.approx(whole, abs=1e-5)
        for key, tensor in trained(tmp_path / "out" / name).items():
            torch.testing.assert_close(tensor, trained(tmp_path / "out" / "1")[key], rtol=0, atol=1e-5)


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
