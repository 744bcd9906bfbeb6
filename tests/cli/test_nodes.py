"""Two machines: two groups of torchrun, which meet as docs/scale.md has it, here on the loopback device."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ON_GPU
from tests.support.parallel_runs import losses, recipe, weights
from tests.support.ranks import ROOT, Job, run_jobs
from tests.support.runs import values
from tests.support.warm import Warm

pytestmark = [pytest.mark.slow, pytest.mark.skipif(ON_GPU, reason="gloo, on CPUs")]


def test_two_machines_train_as_one_with_two_processes(warm: Warm, tiny: Path, tmp_path: Path) -> None:
    file = recipe(tmp_path, "r", values(tiny, tmp_path), steps=2, batch_size=2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=two"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", *meeting]
    machines = [
        subprocess.Popen(
            [*command, "-m", "lockadapt", "train", file, "-o", "machines", "-q"],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)},
        )
        for _ in range(2)
    ]
    assert [machine.wait() for machine in machines] == [0, 0]
    outcome = run_jobs(warm, tmp_path, [Job(["train", file, "-o", "processes", "-q"])])[0]
    assert [code for _, code in outcome.codes] == [0, 0]
    assert losses(tmp_path / "machines") == losses(tmp_path / "processes")
    ours, theirs = (weights(tmp_path / run) for run in ("machines", "processes"))
    assert ours.keys() == theirs.keys()
    assert all(tensor.equal(theirs[name]) for name, tensor in ours.items())
