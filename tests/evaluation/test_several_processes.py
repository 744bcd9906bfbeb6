"""Two processes answer, embed and cache together what one does alone, to the digit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tests import ON_GPU
from tests.support.ranks import Job, run_jobs
from tests.support.rows import embedding_recipe
from tests.support.warm import Warm

pytestmark = [pytest.mark.slow, pytest.mark.skipif(ON_GPU, reason="gloo, on CPUs")]


def test_two_processes_find_what_one_finds(
    warm: Warm, tiny: Path, embedding_run: Path, tmp_path: Path
) -> None:
    for name in ("one", "two", "generated-one", "generated-two"):
        shutil.copytree(embedding_run, tmp_path / name)
    recipe = embedding_recipe(tiny, tmp_path, "llama-tied")
    (tmp_path / "cached.yaml").write_text(yaml.safe_dump(recipe))
    small = ["--set", "evaluation.batch_size=2"]
    jobs = []
    for name, count in (("one", 1), ("two", 2)):
        searched = [
            "search",
            str(embedding_run),
            "--images",
            str(tmp_path / "pictures"),
            "--query",
            "a red shape",
        ]
        written = ["--set", "evaluation.method=generate", "--predictions", f"{name}.jsonl", *small]
        jobs += [
            Job(["eval", name, "-q", *small], count),
            Job(["eval", f"generated-{name}", "-q", *written], count),
            Job([*searched, "--index", f"index-{name}", "-q"], count),
            Job(["cache", "cached.yaml", f"data.cache={tmp_path}/cache-{name}", "-q"], count),
        ]
    for outcome in run_jobs(warm, tmp_path, jobs):
        assert {code for _, code in outcome.codes} == {0}, outcome
    for run in ("", "generated-"):
        for file in ("evaluation.json", "predictions.jsonl"):
            ours, theirs = (tmp_path / f"{run}{name}" / file for name in ("two", "one"))
            assert ours.read_bytes() == theirs.read_bytes()
            assert len(ours.read_text()) > 100
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    indices = [tmp_path / f"index-{name}" for name in ("two", "one")]
    ours, theirs = (next(iter(load_file(next(index.glob("*.safetensors"))).values())) for index in indices)
    assert ours.equal(theirs)
    files = [json.loads((index / "index.json").read_text())["files"] for index in indices]
    assert files[0] == files[1]
    caches = [
        {path.name: path.read_bytes() for path in (tmp_path / f"cache-{name}").rglob("*.safetensors")}
        for name in ("two", "one")
    ]
    assert caches[0] == caches[1]
    assert caches[0]
