"""Kills one of two processes in the middle of a training, and lets it go on: `python -m tests.kill.ranks`.

Each process has two workers that read rows: of a file with whole models (`none`) and shared ones (`fsdp`), or of
shards (`parquet`, `webdataset`). After `--kills` kills of a random process in a random step, half of
the runs go on by `--resume`, half as an elastic launcher starts them again. `--elastic` more are killed from
outside at a random moment below `lockadapt train --processes 2 --max-restarts 1`. All must end with the
weights of the run that nobody killed, by SHA-256.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import chdir, environ, getcwd, kill
from pathlib import Path

import peft  # noqa: F401 - before the forks are made
import torch
import transformers
import transformers.models.clip.modeling_clip
import transformers.models.llama.modeling_llama
import transformers.models.llava.modeling_llava

import lockadapt.api.steps
import lockadapt.cli  # noqa: F401
from lockadapt.files import sha256_of
from lockadapt.training.progress import read_metrics
from tests.support.parallel_runs import recipe
from tests.support.ranks import Job, run_job
from tests.support.runs import values
from tests.support.shards import write
from tests.support.tiny import tiny_llm, tiny_tower

STEPS, SAVE_EVERY = 7, 2
MODES = ("none", "fsdp", "parquet", "webdataset")
ROWS = 20
"""Of shards: fewer than a run takes, so that it goes through more than one window."""


def prepare(folder: Path, modes: Sequence[str] = MODES) -> None:
    """Writes `none.yaml`, `fsdp.yaml` …, and trains them undisturbed into folders of their names."""
    tiny_llm("llama", folder / "tiny" / "llama")
    tiny_tower("clip-vision", folder / "tiny" / "clip-vision")
    given = {**values(folder / "tiny", folder), "data": {"workers": 2, "cache": str(folder / "cache")}}
    given["lora"] = {"rank": 4, "dropout": 0.1}
    table = given["objectives"]["vqa"]["train"]
    for mode in modes:
        lengths = {"steps": STEPS, "save_every": SAVE_EVERY, "batch_size": 2}
        lengths["sharding"] = "fsdp" if mode == "fsdp" else "none"
        streamed = mode in ("parquet", "webdataset")
        given["objectives"]["vqa"]["train"] = (
            {"format": mode, "path": str(write(mode, folder / f"{mode}-shards", ROWS))} if streamed else table
        )
        recipe(folder, mode, given, **lengths)
        with inside(folder):
            outcome = run_job(Job(["train", f"{mode}.yaml", "-o", mode, "-q"]))
        assert [code for _, code in outcome.codes] == [0, 0], outcome


def killed_and_gone_on(folder: Path, mode: str, rank: int, step: int, elastic: bool) -> bool:
    """Kills a process in a step; whether the run that goes on ends with the weights that it should.

    Args:
        folder: see `prepare`.
        mode: one of `MODES`.
        rank: of the process.
        step: in which it is killed, from 1.
        elastic: started again as a launcher does, without `--resume`.

    Returns:
        Whether SHA-256 is equal.
    """
    run = folder / f"{mode}-{rank}-{step}-{elastic}"
    train = ["train", f"{mode}.yaml", "-o", run.name, "-q"]
    with inside(folder):
        first = run_job(Job(train, killed=(rank, step)))
        assert (rank, -signal.SIGKILL) in first.codes, first
        again = Job(train, environment={"TORCHELASTIC_RESTART_COUNT": "1"})
        outcome = run_job(again if elastic else Job([*train, "--resume"]))
    same = [code for _, code in outcome.codes] == [0, 0] and weights(run) == weights(folder / mode)
    shutil.rmtree(run)
    return same


def killed_from_outside(folder: Path, mode: str, chance: random.Random) -> bool:
    """Kills a process of a real launcher, which starts all of them again; as `killed_and_gone_on`."""
    run = folder / f"elastic-{mode}"
    command = [sys.executable, "-m", "lockadapt", "train", f"{mode}.yaml", "-o", run.name, "-q"]
    started = subprocess.Popen(
        [*command, "--processes", "2", "--max-restarts", "1"],
        cwd=folder,
        env={**environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": getcwd()},
    )
    step = chance.randint(1, STEPS - 2)
    while started.poll() is None and len(steps_of(run)) < step:
        time.sleep(0.05)
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    ranks = [int(child) for child in children if b"lockadapt" in Path(f"/proc/{child}/cmdline").read_bytes()]
    assert len(ranks) == 2, ranks
    kill(chance.choice(ranks), signal.SIGKILL)
    same = started.wait() == 0 and weights(run) == weights(folder / mode)
    shutil.rmtree(run)
    return same


def steps_of(run: Path) -> list[float]:
    """The losses so far."""
    file = run / "metrics.jsonl"
    return [line["loss"] for line in read_metrics(file) if "loss" in line] if file.is_file() else []


def weights(run: Path) -> str:
    """SHA-256 of what trained."""
    return sha256_of(run / "checkpoints" / "train" / "finished" / "trainable.safetensors")


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Works in a folder."""
    before = getcwd()
    chdir(folder)
    try:
        yield
    finally:
        chdir(before)


def main() -> int:
    """Exit code 1 where a run did not go on, or ended with other weights."""
    parser = argparse.ArgumentParser(prog="python -m tests.kill.ranks")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--elastic", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    given = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    chance, same = random.Random(given.seed), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, given.modes)
        for number in range(given.kills):
            mode = given.modes[number % len(given.modes)]
            elastic = number // len(given.modes) % 2 == 1
            rank, step = chance.randrange(2), chance.randint(1, STEPS)
            same.append(killed_and_gone_on(folder, mode, rank, step, elastic))
            how = "started again" if elastic else "--resume"
            print(
                f"{mode}: process {rank} in step {step}, {how}: {'equal' if same[-1] else 'NOT EQUAL'}",
                flush=True,
            )
        for number in range(given.elastic):
            mode = given.modes[number % len(given.modes)]
            same.append(killed_from_outside(folder, mode, chance))
            print(f"{mode}: --max-restarts: {'equal' if same[-1] else 'NOT EQUAL'}", flush=True)
    print(f"{sum(same)} of {len(same)} equal")
    return int(not all(same))


if __name__ == "__main__":
    sys.exit(main())
