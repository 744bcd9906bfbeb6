"""Merges again and again in children of a process that has imported everything, and kills each at a random moment."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import peft  # noqa: F401 - before the children are made
import transformers.models.llama.modeling_llama  # noqa: F401

from lockadapt.exports.weights.merge_weights import Weighted, merge_weights
from lockadapt.files import new_folder, sha256_of


def main(base: Path, adapter: Path, scratch: Path, kills: int) -> None:
    """Prints how often the target was absent and complete; raises if it was ever anything else."""
    # The first merge reads cold files; kills drawn over its time would mostly come after a warm one has ended.
    seconds = min(timed(base, adapter, scratch / name) for name in ("cold", "warm", "whole"))
    wanted = digests(scratch / "whole")
    chance, outcomes = random.Random(0), {"absent": 0, "complete": 0, "abandoned": 0}
    for number in range(kills):
        target = scratch / f"killed-{number}"
        child = merge(base, adapter, target)
        # The moment of the signal is what is tried out, so it is drawn, over the whole merge and a little more.
        time.sleep(chance.uniform(0, seconds * 1.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if target.exists():
            assert digests(target) == wanted, f"{target} is neither absent nor complete"
        outcomes["complete" if target.exists() else "absent"] += 1
        left = marked(scratch, number)
        outcomes["abandoned"] += len(left)
        if left:
            finish(merge(base, adapter, target))
            assert digests(target) == wanted
            assert not marked(scratch, number), "what a killed writer left was not removed"
    print(json.dumps(outcomes))


def timed(base: Path, adapter: Path, output: Path) -> float:
    """Seconds of a merge that ends."""
    start = time.perf_counter()
    finish(merge(base, adapter, output))
    return time.perf_counter() - start


def merge(base: Path, adapter: Path, output: Path) -> int:
    """Starts a child that merges; returns its number."""
    child = os.fork()
    if child:
        return child
    with new_folder(output, what="merging") as folder:
        merge_weights(base, folder, [Weighted(adapter)])
    os._exit(0)


def finish(child: int) -> None:
    """Waits until a child has ended well."""
    assert os.waitpid(child, 0)[1] == 0


def marked(scratch: Path, number: int) -> list[Path]:
    """Folders that a killed child had begun to fill."""
    return list(scratch.glob(f".killed-{number}.writing-*"))


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file by its name."""
    return {file.name: sha256_of(file) for file in folder.iterdir()}


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), int(sys.argv[4]))
