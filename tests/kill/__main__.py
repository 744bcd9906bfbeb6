"""Kills commands and prints a table: `python -m tests.kill [--seeds 3] [--only merge]`, or `make kill`."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft  # noqa: F401 - before the forks are made
import torch
import transformers
import transformers.models.clip.modeling_clip
import transformers.models.llama.modeling_llama
import transformers.models.llava.modeling_llava

import lockadapt.building.cache
import lockadapt.evaluation.search
import lockadapt.exports.export
import lockadapt.exports.merge_command
import lockadapt.training.loop  # noqa: F401
from lockadapt.console import table_text
from tests.kill.commands import Killed, commands
from tests.kill.points import run_and_kill, run_to_its_end
from tests.support.timeless import contents


@dataclass
class Outcome:
    """How the kills of a command ended.

    Attributes:
        points: changes of files that an undisturbed command makes.
        kills: that hit.
        differences: files that are not what an undisturbed command writes, each with its point.
        failures: what did not go on after a kill.
        seconds: of all of it.
    """

    points: int = 0
    kills: int = 0
    differences: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


def kill(command: Killed, folder: Path, seeds: Sequence[int], share: float) -> Outcome:
    """Kills a command at points that are drawn evenly over all of them, and lets it go on; prints what is wrong.

    Args:
        command: what is killed.
        folder: an empty one.
        seeds: each draws points of its own.
        share: of the command's kills.

    Returns:
        What was seen.
    """
    started, outcome = time.monotonic(), Outcome()
    whole = folder / "whole"
    whole.mkdir(parents=True)
    outcome.points = run_to_its_end(command.arguments(whole), whole)
    wanted = compared(whole)
    for seed in seeds:
        chance, count = random.Random(seed), max(1, round(command.kills * share))
        for number in range(count):
            begin = outcome.points * number / count
            point = 1 + int(begin + chance.random() * outcome.points / count)
            # Names as long as the whole's, so that what holds a path has its length too.
            target = folder / f"k{number:04d}"
            target.mkdir()
            outcome.kills += run_and_kill(command.arguments(target), target, point)
            where = f"{command.name}, seed {seed}, killed before change {point}"
            try:
                if (again := command.again(target)) is not None:
                    run_to_its_end(again, target)
            except AssertionError as error:
                said_last = Path(f"{target}.log").read_text(errors="replace").strip()[-600:]
                outcome.failures.append(f"{where}: {error}\n{said_last}")
                print(outcome.failures[-1], flush=True)
            else:
                got = compared(target)
                names = sorted(
                    name for name in wanted.keys() | got.keys() if wanted.get(name, 0) != got.get(name, 0)
                )
                for name in names:
                    outcome.differences.append(f"{where}: {name}")
                    print(outcome.differences[-1], flush=True)
            shutil.rmtree(target)
    outcome.seconds = time.monotonic() - started
    return outcome


def compared(folder: Path) -> dict[str, Any]:
    """Files without times, and without what a resumed run cannot say of a tower that it needed not load.

    Hidden ones are among them, and empty folders: whoever goes on clears what the killed process left.
    """
    files = {name: data for name, data in contents(folder).items() if not name.endswith("start.json")}
    folders = (path for path in folder.rglob("*") if path.is_dir())
    return files | {f"{path.relative_to(folder).as_posix()}/": None for path in sorted(folders)}


def table(outcomes: dict[str, Outcome]) -> str:
    """A line a command, and their sum."""
    rows = []
    for name, outcome in outcomes.items():
        numbers = [outcome.points, outcome.kills, len(outcome.failures), len(outcome.differences)]
        rows.append([name, *(f"{number:,}" for number in numbers), f"{outcome.seconds:,.0f}"])
    every = outcomes.values()
    kills, failures = sum(outcome.kills for outcome in every), sum(len(outcome.failures) for outcome in every)
    differences, seconds = (
        sum(len(outcome.differences) for outcome in every),
        sum(outcome.seconds for outcome in every),
    )
    rows.append(["all", "", f"{kills:,}", f"{failures:,}", f"{differences:,}", f"{seconds:,.0f}"])
    head = ["command", "points", "kills", "did not go on", "files that differ", "s"]
    return table_text(head, rows, right=range(1, len(head)))


def main() -> int:
    """Exit code 1 where a command did not go on, or ended in other files."""
    parser = argparse.ArgumentParser(prog="python -m tests.kill")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of 50 kills a seed")
    parser.add_argument("--only", action="append", default=[])
    given = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = {
            command.name: kill(command, Path(folder) / command.name, range(given.seeds), given.share)
            for command in commands(Path(folder))
            if not given.only or command.name in given.only
        }
        print(table(outcomes))
    return int(any(outcome.failures or outcome.differences for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
