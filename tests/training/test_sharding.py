"""Two processes that share the LLM (FSDP2) learn what two whole ones learn; their checkpoints go on anywhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from lockadapt.api.steps import merge
from lockadapt.training.progress import read_metrics
from tests import ON_GPU
from tests.support.parallel_runs import losses, mixed, recipe, weights
from tests.support.ranks import Job, Outcome, run_jobs
from tests.support.runs import values
from tests.support.warm import Warm

pytestmark = [pytest.mark.slow, pytest.mark.skipif(ON_GPU, reason="gloo, on CPUs")]

CLOSE = 1e-5


@pytest.fixture(scope="module")
def ran(warm: Warm, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Outcome]]:
    """All trainings of this file."""
    folder = tmp_path_factory.mktemp("sharding")
    vqa = values(tiny, folder)
    rows = vqa["objectives"]["vqa"]
    rows["validation"] = rows["train"]
    every = mixed(tiny, folder, 2, 1)
    every["model"]["quantization"] = "nf4"
    lengths = {"steps": 6, "save_every": 2, "keep_checkpoints": 3, "validate_every": 6, "batch_size": 2}
    recipe(folder, "vqa", vqa, **{**lengths, "validate_every": 2, "gradient_checkpointing": True})
    recipe(folder, "mixed", every, steps=3)
    jobs = {
        f"{name}-{sharding}": Job(
            ["train", f"{name}.yaml", f"training.sharding={sharding}", "-o", f"{name}-{sharding}"]
        )
        for name in ("vqa", "mixed")
        for sharding in ("none", "fsdp")
    }
    for name, hook in (("hungry", "out_of_memory"), ("wrong", "wrong_block")):
        given = ["train", "vqa.yaml", "training.sharding=fsdp", "-o", name]
        jobs[name] = Job(given, hook=f"tests.support.rank_hooks:{hook}")
    first = dict(zip(jobs, run_jobs(warm, folder, list(jobs.values())), strict=True))
    interrupted(folder / "vqa-fsdp", "one", "checkpoint-6", "checkpoint-4")
    go_on = ["train", "vqa.yaml", "training.sharding=fsdp", "--resume", "-o"]
    alone = run_jobs(warm, folder, [Job([*go_on, "one"], 1)])[0]
    interrupted(folder / "one", "back", "checkpoint-6")
    back = run_jobs(warm, folder, [Job([*go_on, "back"])])[0]
    return folder, {**first, "one": alone, "back": back}


def interrupted(run: Path, name: str, *without: str) -> None:
    """A run folder as it was before its end."""
    shutil.copytree(run, run.with_name(name))
    for end in ("finished", *without):
        shutil.rmtree(run.with_name(name) / "checkpoints" / "train" / end)


@pytest.mark.parametrize("name", ["vqa", "mixed"])
def test_what_is_shared_learns_what_whole_models_learn(
    ran: tuple[Path, dict[str, Outcome]], name: str
) -> None:
    """In float32, and all objectives together in NF4."""
    folder, outcomes = ran
    ours, theirs = folder / f"{name}-fsdp", folder / f"{name}-none"
    for run in (ours, theirs):
        assert {code for _, code in outcomes[run.name].codes} == {0}, outcomes[run.name]
    assert "tensors of the LLM's blocks among 2 processes" in outcomes[ours.name].stderr
    assert losses(ours) == pytest.approx(losses(theirs), abs=CLOSE)
    # Adam does not see a factor on gradients; their norms do.
    for line, other in zip(*(read_metrics(run / "metrics.jsonl") for run in (ours, theirs)), strict=True):
        norms = [key for key in line if key.endswith("grad_norm") or key.startswith("cosine/")]
        assert {key: line[key] for key in norms} == pytest.approx(
            {key: other[key] for key in norms}, rel=1e-4, abs=CLOSE
        )
        assert norms or "loss" not in line
    expected = weights(theirs)
    for key, tensor in weights(ours).items():
        torch.testing.assert_close(tensor, expected.pop(key), rtol=0, atol=CLOSE)
    assert not expected
    # Whole tensors are digested before they are shared, afterwards, and after training.
    starts = [
        json.loads((run / "checkpoints" / "train" / "start.json").read_text()) for run in (ours, theirs)
    ]
    stages = [json.loads((run / "run.json").read_text())["stages"][0] for run in (ours, theirs)]
    assert starts[0] == starts[1]
    assert stages[0]["locked"] == len(starts[0]["frozen"])
    assert stages[0]["components"] == stages[1]["components"]


def test_a_process_that_fails_ends_all(ran: tuple[Path, dict[str, Outcome]]) -> None:
    """The other one waits for blocks inside its forward pass."""
    outcome = ran[1]["hungry"]
    assert outcome.first == 5, outcome
    assert "out of memory: CUDA out of memory" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert all(code for _, code in outcome.codes)


def test_another_loss_than_before_sharding_ends_the_run(ran: tuple[Path, dict[str, Outcome]]) -> None:
    outcome = ran[1]["wrong"]
    assert {code for _, code in outcome.codes} <= {8, -15}, outcome
    assert outcome.first == 8
    assert "batches have another loss once the LLM is sharded" in outcome.stderr


def test_a_checkpoint_goes_on_on_one_process_and_back(ran: tuple[Path, dict[str, Outcome]]) -> None:
    folder, outcomes = ran
    whole = weights(folder / "vqa-fsdp")
    for name, step in (("one", 2), ("back", 4)):
        assert {code for _, code in outcomes[name].codes} == {0}, outcomes[name]
        assert f"going on from checkpoint-{step}" in outcomes[name].stderr
        assert ("sharded: " in outcomes[name].stderr) == (name == "back")
        for key, tensor in weights(folder / name).items():
            torch.testing.assert_close(tensor, whole[key], rtol=0, atol=CLOSE)
        assert losses(folder / name) == pytest.approx(losses(folder / "vqa-fsdp"), abs=CLOSE)


def test_a_run_that_shared_its_llm_is_merged(ran: tuple[Path, dict[str, Outcome]], tmp_path: Path) -> None:
    merged = merge(ran[0] / "mixed-fsdp", tmp_path / "merged", quiet=True)
    assert merged.max_abs_logit_diff < 1e-4
    assert merged.top1_agreement == 1.0
