"""Runs `lockadapt merge RUN` again and again, and kills each at a random moment: of reading, merging, proving, recording.

The merges are children of a process that has imported everything.

    python killing_merges.py RUN ROOM KILLS [cold]

With `cold` every proof runs in a Python that starts anew, as users' do; without, in a fork, which takes seconds less.
"""

from __future__ import annotations

import json
import os
import random
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import peft  # noqa: F401 - before the children are made
import transformers.models.llama.modeling_llama
import transformers.models.llava.modeling_llava  # noqa: F401

from lockadapt.cli import main as command_line
from lockadapt.files import sha256_of
from lockadapt.models import proof


def main(run: Path, scratch: Path, kills: int, cold: bool) -> None:
    """Prints how often the target was absent and complete; raises if it was ever anything else."""
    start = time.perf_counter()
    finish(merge(run, scratch / "whole", cold))
    seconds = time.perf_counter() - start
    wanted = digests(scratch / "whole")
    assert {"model.safetensors", "merge.json", "lockadapt.json", "README.md"} <= wanted.keys()
    chance, outcomes = random.Random(0), {"absent": 0, "complete": 0, "abandoned": 0}
    target = scratch / "killed"
    # Short merges may all be killed outside the writing, so it goes on until one was killed within.
    while (done := outcomes["absent"] + outcomes["complete"]) < kills or (
        not outcomes["abandoned"] and done < 20 * kills
    ):
        child = merge(run, target, cold)
        # The moment of the signal is what is tried out, so it is drawn, over the whole merge and a little more.
        time.sleep(chance.uniform(0, seconds * 1.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        outcomes["complete" if target.exists() else "absent"] += 1
        outcomes["abandoned"] += bool(left(target))
        if target.exists():
            assert digests(target) == wanted, f"{target} is neither absent nor complete"
            shutil.rmtree(target)
    finish(merge(run, target, cold))
    assert digests(target) == wanted
    assert not left(target), "what a killed merge left was not removed"
    print(json.dumps({**outcomes, "seconds": seconds}))


def merge(run: Path, output: Path, cold: bool) -> int:
    """Starts a child that merges; returns its number."""
    child = os.fork()
    if child:
        return child
    if not cold:
        proof.run_python = forked
    sys.argv[:] = ["lockadapt", "merge", str(run), "--output", str(output), "--quiet"]
    try:
        command_line()
    except SystemExit as end:
        os._exit(int(end.code or 0))
    os._exit(0)


def forked(arguments: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    """Takes the place of `run_python`."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), ""
    try:
        os.chdir(cwd)
        sys.argv[:] = arguments
        runpy.run_path(arguments[0], run_name="__main__")
        os._exit(0)
    finally:
        os._exit(1)


def finish(child: int) -> None:
    """Waits until a child has ended well."""
    assert os.waitpid(child, 0)[1] == 0


def left(target: Path) -> list[Path]:
    """Folders that a killed child had begun to fill."""
    return list(target.parent.glob(f".{target.name}.writing-*"))


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file by its name, but for the folder's own name in what is said about it."""
    name = str(folder).encode()
    for file in (folder / "merge.json", folder / "README.md"):
        file.write_bytes(file.read_bytes().replace(name, b"FOLDER"))
    return {
        file.relative_to(folder).as_posix(): sha256_of(file) for file in folder.rglob("*") if file.is_file()
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), cold="cold" in sys.argv[4:])
