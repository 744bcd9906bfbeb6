"""Two processes beside one with the same global batch: losses, weights and speed, on the CPU with gloo.

    python benchmarks/processes.py [--steps 50] [--objective vqa]… [--mode ddp]… [--json]

The quickstart's models and scenes: packed VQA, contrastive pairs (chunks smaller than the batch), image
generation, and all of them mixed; whole models, and blocks of the LLM shared (FSDP). Each process has one
thread, and a run of its own. Exit code 1 if a loss
differs by more than 1e-5, or if two processes do not end with the weights of one that accumulates two
micro-batches, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from lockadapt.quickstart.prompts import make_prompts
from lockadapt.quickstart.recipe import quickstart_recipe
from lockadapt.quickstart.scenes import make_dataset
from lockadapt.quickstart.tour import ASSETS
from lockadapt.training.progress import read_metrics

OBJECTIVES = {"vqa": ("vqa",), "itc": ("itc",), "t2i": ("t2i",), "mixed": ("vqa", "itc", "t2i")}
MODES = ("ddp", "accumulation", "fsdp")
LIMIT = 1e-5
ROWS = 16
"""Of a global micro-batch, over all processes."""


@dataclass(frozen=True)
class Comparison:
    """A run on several processes beside one on a single process.

    Attributes:
        objective: what was learned.
        mode: `ddp` and `fsdp` (blocks of the LLM shared) beside one process with the whole batch;
            `accumulation`: whole models beside one process that accumulates as many micro-batches as there
            are processes.
        processes: how many.
        max_loss_difference: over all steps.
        weights_equal: all processes ended with the same weights (a run ends with an error otherwise); with
            `accumulation` these are also those of the single process, bit for bit.
        efficiency: samples a second over the processes' number times those of one process.
    """

    objective: str
    mode: str
    processes: int
    max_loss_difference: float
    weights_equal: bool
    efficiency: float

    @property
    def holds(self) -> bool:
        """Whether it is what is promised."""
        return self.weights_equal and self.max_loss_difference <= (
            0 if self.mode == "accumulation" else LIMIT
        )


@dataclass(frozen=True)
class Trained:
    """A run folder, read."""

    losses: list[float]
    weights: dict[str, torch.Tensor]
    rate: float


def main() -> None:
    """Runs what was asked for, and prints it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--objective", action="append", choices=tuple(OBJECTIVES))
    parser.add_argument("--mode", action="append", choices=MODES)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    runs: list[Comparison] = []
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(Path(folder) / "data", train=200, test=10)
        make_prompts(Path(folder) / "data", train=60, test=10)
        for name in given.objective or OBJECTIVES:
            runs += compare(name, Path(folder), given.steps, given.mode or MODES)
    if given.json:
        print(json.dumps({"runs": [asdict(run) for run in runs]}))
    else:
        for run in runs:
            print(run)
    sys.exit(not all(run.holds for run in runs))


def compare(
    name: str, folder: Path, steps: int, modes: Sequence[str], processes: int = 2
) -> list[Comparison]:
    """Trains an objective on one process and on several; packed VQA also with accumulation."""
    several = train(name, folder, steps, ROWS // processes, processes=processes)
    single = train(name, folder, steps, ROWS)
    runs = [compared(name, "ddp", several, single, processes)] if "ddp" in modes else []
    if "fsdp" in modes:
        shared = train(name, folder, steps, ROWS // processes, processes=processes, sharding="fsdp")
        runs.append(compared(name, "fsdp", shared, single, processes))
    if name == "vqa" and "accumulation" in modes:
        accumulated = train(name, folder, steps, ROWS // processes, accumulation=processes)
        runs.append(compared(name, "accumulation", several, accumulated, processes))
    return runs


def compared(name: str, mode: str, several: Trained, single: Trained, processes: int) -> Comparison:
    """The two beside each other."""
    difference = max(abs(a - b) for a, b in zip(several.losses, single.losses, strict=True))
    same = all(torch.equal(tensor, single.weights[key]) for key, tensor in several.weights.items())
    efficiency = several.rate / single.rate / processes
    return Comparison(name, mode, processes, difference, same or mode != "accumulation", round(efficiency, 3))


def train(
    name: str,
    folder: Path,
    steps: int,
    rows: int,
    *,
    processes: int = 1,
    accumulation: int = 1,
    sharding: str = "none",
) -> Trained:
    """Trains, as users do.

    Args:
        name: of `OBJECTIVES`.
        folder: holds `data/`; the run is written here.
        steps: optimiser steps.
        rows: of a micro-batch on each process.
        processes: how many.
        accumulation: micro-batches of a step.
        sharding: of the LLM.

    Returns:
        What the run folder holds.
    """
    run = folder / f"{name}-{processes}-{accumulation}-{sharding}"
    recipe: dict[str, Any] = quickstart_recipe(folder / "data", ASSETS, run)
    chosen = {key: value for key, value in recipe["objectives"].items() if key in OBJECTIVES[name]}
    for value in chosen.values():
        value["sampling_weight"] = 1.0
    if "itc" in chosen:
        chosen["itc"] |= {"batch_size": rows, "chunk": ROWS // 4}
    recipe["objectives"] = chosen
    recipe["training"] |= {
        **{"steps": steps, "batch_size": rows, "accumulation": accumulation, "log_every": 1},
        "sharding": sharding,
        **{"learning_rate": 2e-4, "projector_learning_rate": 1e-3},
    }
    file = run.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(recipe))
    call("train", str(file), "--quiet", *(("--processes", str(processes)) if processes > 1 else ()))
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "loss" in line]
    weights = load_file(run / "checkpoints" / "train" / "finished" / "trainable.safetensors")
    return Trained(
        [line["loss"] for line in lines],
        weights,
        json.loads((run / "run.json").read_text())["samples_per_second"],
    )


def call(*arguments: str) -> None:
    """`lockadapt`, with one thread a process."""
    command: Sequence[str] = [sys.executable, "-m", "lockadapt", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
