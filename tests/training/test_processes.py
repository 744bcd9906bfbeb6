"""Two processes train what one trains: losses, weights, checkpoints; what fails on one of them ends all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from lockadapt.training.progress import read_metrics
from tests import ON_GPU
from tests.support.parallel_runs import losses, mixed, recipe, weights
from tests.support.ranks import Job, Outcome, run_jobs
from tests.support.runs import values
from tests.support.warm import Warm

pytestmark = [pytest.mark.slow, pytest.mark.skipif(ON_GPU, reason="gloo, on CPUs")]


@pytest.fixture(scope="module")
def ran(warm: Warm, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Outcome]]:
    """All trainings of this file, in one launch."""
    folder = tmp_path_factory.mktemp("processes")
    vqa = values(tiny, folder)
    rows = vqa["objectives"]["vqa"]
    rows["validation"] = rows["train"]
    kept = {"steps": 4, "save_every": 2, "validate_every": 2, "batch_size": 2}
    jobs = {
        "two": Job(["train", recipe(folder, "two", vqa, **kept), "-o", "two", "-q"]),
        "accumulated": Job(
            ["train", recipe(folder, "accumulated", vqa, **kept | {"accumulation": 2}), "-o", "accumulated"],
            1,
        ),
        "mixed-two": Job(
            ["train", recipe(folder, "m2", mixed(tiny, folder, 2, 1), steps=6), "-o", "mixed-two"]
        ),
        "mixed-one": Job(
            ["train", recipe(folder, "m1", mixed(tiny, folder, 4, 3), steps=6), "-o", "mixed-one"], 1
        ),
        "bad": Job(["train", "two.yaml", "-o", "bad"], hook="tests.support.rank_hooks:bad_data"),
        "hungry": Job(["train", "two.yaml", "-o", "hungry"], hook="tests.support.rank_hooks:out_of_memory"),
        "other": Job(["train", "two.yaml", "-o", "other"], hook="tests.support.rank_hooks:other_weights"),
    }
    first = dict(zip(jobs, run_jobs(warm, folder, list(jobs.values())), strict=True))
    assert first["two"].codes == [[0, 0], [1, 0]] or first["two"].codes == [[1, 0], [0, 0]], first["two"]
    for name in ("resumed-by-two", "resumed-by-one"):
        shutil.copytree(folder / "two", folder / name)
        for end in ("finished", "checkpoint-4"):
            shutil.rmtree(folder / name / "checkpoints" / "train" / end)
    again = {
        "resumed-by-two": Job(["train", "two.yaml", "-o", "resumed-by-two", "--resume"]),
        "resumed-by-one": Job(["train", "two.yaml", "-o", "resumed-by-one", "--resume"], 1),
    }
    second = dict(zip(again, run_jobs(warm, folder, list(again.values())), strict=True))
    return folder, {**first, **second}


def test_two_processes_are_accumulation_by_two(ran: tuple[Path, dict[str, Outcome]]) -> None:
    folder, outcomes = ran
    assert [code for _, code in outcomes["accumulated"].codes] == [0]
    assert losses(folder / "two") == losses(folder / "accumulated")
    two, accumulated = weights(folder / "two"), weights(folder / "accumulated")
    assert two.keys() == accumulated.keys()
    assert all(torch.equal(tensor, accumulated[name]) for name, tensor in two.items())
    lines = [read_metrics(folder / name / "metrics.jsonl") for name in ("two", "accumulated")]
    for ours, theirs in zip(*lines, strict=True):
        for key in ("eval_loss", "vqa/loss", "vqa/samples", "vqa/tokens", "vqa/token_accuracy", "epoch"):
            assert ours.get(key) == pytest.approx(theirs.get(key), abs=1e-6)
    record = json.loads((folder / "two" / "run.json").read_text())
    assert record["locked"] is True
    assert record["stages"][0]["samples"] == 16
    assert outcomes["two"].stderr == ""


def test_all_objectives_together_are_those_of_one_process(ran: tuple[Path, dict[str, Outcome]]) -> None:
    """Contrastive batches are gathered, images are generated from the same random numbers."""
    folder, outcomes = ran
    assert {code for name in ("mixed-two", "mixed-one") for _, code in outcomes[name].codes} == {0}
    ours, theirs = (losses(folder / name) for name in ("mixed-two", "mixed-one"))
    assert len(ours) == 6
    assert ours == pytest.approx(theirs, abs=1e-5)
    drawn = read_metrics(folder / "mixed-two" / "metrics.jsonl")
    assert all(any(f"{name}/loss" in line for line in drawn) for name in ("vqa", "itc", "t2i"))
    alone = weights(folder / "mixed-one")
    for name, tensor in weights(folder / "mixed-two").items():
        torch.testing.assert_close(tensor, alone[name], rtol=0, atol=1e-4)
    pictures = sorted((folder / "mixed-two" / "samples").rglob("*.png"))
    assert pictures
    assert Image.open(pictures[0]).size[0] > 0


def test_a_run_goes_on_on_as_many_processes_or_on_others(ran: tuple[Path, dict[str, Outcome]]) -> None:
    folder, outcomes = ran
    whole = weights(folder / "two")
    for name, tolerance in (("resumed-by-two", 0.0), ("resumed-by-one", 1e-6)):
        assert {code for _, code in outcomes[name].codes} == {0}
        assert "going on from checkpoint-2" in outcomes[name].stderr
        for key, tensor in weights(folder / name).items():
            torch.testing.assert_close(tensor, whole[key], rtol=0, atol=tolerance)
        assert losses(folder / name) == pytest.approx(losses(folder / "two"), abs=tolerance)


def test_what_fails_on_one_process_ends_all(ran: tuple[Path, dict[str, Outcome]]) -> None:
    _, outcomes = ran
    for name, code, words in (
        ("bad", 3, "rows.jsonl:3: the row has no answer"),
        ("hungry", 5, "out of memory: CUDA out of memory"),
        ("other", 8, "[1] have other weights than process 0"),
    ):
        outcome = outcomes[name]
        assert outcome.first == code, outcome
        assert words in outcome.stderr
        assert "Traceback" not in outcome.stderr
        assert all(ended for _, ended in outcome.codes)
    assert outcomes["bad"].stderr.count("error:") == 1
