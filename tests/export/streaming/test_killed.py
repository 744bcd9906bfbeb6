"""A merge that is killed leaves nothing or everything; memory does not grow with the model."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lockadapt.files import new_folder, sha256_of
from tests.export.streaming.made import Case, make_adapter, make_base

ROOT = Path(__file__).resolve().parents[3]
MERGER = """
import sys, time
from pathlib import Path
from lockadapt.export.streaming.merge_weights import Weighted, merge_weights
from lockadapt.files import new_folder
import peft, transformers.models.llama.modeling_llama
base, adapter, output = map(Path, sys.argv[1:])
print("ready", flush=True)
sys.stdin.readline()
start = time.perf_counter()
with new_folder(output, what="merging") as folder:
    merge_weights(base, folder, [Weighted(adapter)])
print(time.perf_counter() - start, flush=True)
"""


@pytest.mark.slow
def test_sigkill_leaves_nothing_or_everything(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    case = Case(hidden=64, shards=3)
    make_adapter(case, make_base(case, base), adapter)
    process = start(base, adapter, tmp_path / "whole")
    seconds = float(process.stdout.readline())  # type: ignore[union-attr]
    wanted = digests(tmp_path / "whole")
    chance, absent = random.Random(0), 0
    for number in range(10):
        place = tmp_path / f"killed-{number}"
        process = start(base, adapter, place)
        # The moment of the signal is what is tried out, so it is drawn, over the whole merge and a little more.
        time.sleep(chance.uniform(0, seconds * 1.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not place.exists() or digests(place) == wanted, number
        absent += not place.exists()
        with new_folder(
            place if not place.exists() else tmp_path / f"next-{number}", what="merging"
        ) as folder:
            (folder / "anything").touch()
        left = [path for path in tmp_path.glob(f".killed-{number}.*") if (path / ".writing").exists()]
        assert not (left and absent and not place.exists()), (
            "what a killed writer left is removed by the next"
        )
    assert absent


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Four times as many layers of 12 MB: peak memory may differ by less than two of them."""
    peaks = []
    for layers in (2, 8):
        room = tmp_path / str(layers)
        command = [sys.executable, str(Path(__file__).with_name("memory.py")), str(room), str(layers)]
        done = subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
        )
        peaks.append(json.loads(done.stdout.splitlines()[-1]))
    assert peaks[1]["bytes"] - peaks[0]["bytes"] > 70e6
    assert peaks[1]["peak_mib"] - peaks[0]["peak_mib"] < 24, peaks


def start(base: Path, adapter: Path, output: Path) -> subprocess.Popen[str]:
    """A process that has imported everything and now merges."""
    process = subprocess.Popen(
        [sys.executable, "-c", MERGER, str(base), str(adapter), str(output)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env=environment(),
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")
    process.stdin.flush()
    return process


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def digests(folder: Path) -> dict[str, str]:
    return {file.name: sha256_of(file) for file in folder.iterdir()}
