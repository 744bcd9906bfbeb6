"""Fuzzes for as long as it is told to, and prints a table.

python -m tests.fuzz --minutes 20 [--only rows] [--seed 7]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
import transformers

from lockadapt.console import table_text
from tests.fuzz.engine import Counts, fuzz
from tests.fuzz.runs import finished_and_interrupted
from tests.fuzz.targets import targets

EXAMPLES = 100
"""Inputs of a target before it is the next one's turn."""
SLOW, LARGE = 20.0, 1536 * 1024**2
"""Seconds and bytes, beyond which the slowest and largest input of a target is printed."""


def main() -> int:
    """Exit code 1 where anything ended in a traceback or hung."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--only", action="append", default=[], help="name of a target; may be repeated")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    given = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    print(f"seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        chosen = targets(*finished_and_interrupted(Path(folder)))
        chosen = [target for target in chosen if not given.only or target.name in given.only]
        counts = {target.name: Counts() for target in chosen}
        seconds = dict.fromkeys(counts, 0.0)
        end, seed = time.monotonic() + 60 * given.minutes, given.seed
        while time.monotonic() < end:
            seed += 1
            for target in chosen:
                started, known = time.monotonic(), len(counts[target.name].faults)
                fuzz(target, max(1, round(EXAMPLES * target.share)), seed, counts[target.name])
                seconds[target.name] += time.monotonic() - started
                for fault in counts[target.name].faults[known:]:
                    print(fault, file=sys.stdout, flush=True)
    print(table(counts, seconds))
    for name, count in counts.items():
        if count.slowest[0] > SLOW:
            print(f"slowest of {name}: {count.slowest[1]}")
        if count.peak[0] > LARGE:
            print(f"largest of {name}: {count.peak[1]}")
    return int(any(count.faults for count in counts.values()))


def table(counts: dict[str, Counts], seconds: dict[str, float]) -> str:
    """A line a target, and their sum."""
    codes = sorted({code for count in counts.values() for code in count.ends if code > 0})
    rows = []
    for name, count in counts.items():
        ends = [count.ends[0], *(count.ends[code] for code in codes)]
        numbers = [count.ends.total(), *ends, len(count.faults)]
        rows.append([name, *(f"{n:,}" for n in numbers), *_most(count), f"{seconds[name]:,.0f}"])
    total = [sum(count.ends[code] for count in counts.values()) for code in (0, *codes)]
    faults = sum(len(count.faults) for count in counts.values())
    most = Counts(
        slowest=max(count.slowest for count in counts.values()),
        peak=max(count.peak for count in counts.values()),
    )
    numbers = [sum(count.ends.total() for count in counts.values()), *total, faults]
    rows.append(["all", *(f"{n:,}" for n in numbers), *_most(most), f"{sum(seconds.values()):,.0f}"])
    ends = [f"exit {code}" for code in codes]
    head = ["input", "inputs", "taken", *ends, "faults", "slowest s", "peak MiB", "s"]
    return table_text(head, rows, right=range(1, len(head)))


def _most(count: Counts) -> list[str]:
    return [f"{count.slowest[0]:.1f}", f"{count.peak[0] / 2**20:,.0f}"]


if __name__ == "__main__":
    sys.exit(main())
