"""Runs the hostile cases and prints a table: `python -m tests.hostile [GROUP …]`, or `make hostile`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from lockadapt.console import table_text
from tests.hostile.table import GROUPS, Server, run_group


def main(groups: list[str]) -> int:
    """Exit code 1 where a case ended otherwise than the table says."""
    server = Server()
    with tempfile.TemporaryDirectory() as folder:
        results = {group: run_group(group, server, Path(folder) / group) for group in groups}
    server.close()
    rows = []
    for group, result in results.items():
        slowest = max(result.seconds, key=lambda what: result.seconds[what])
        numbers = [result.cases, len(result.wrong), result.tracebacks, result.hangs]
        memory, seconds = f"{result.peak / 2**20:,.0f}", f"{sum(result.seconds.values()):.1f}"
        rows.append([group, *map(str, numbers), memory, seconds, f"{result.seconds[slowest]:.1f}"])
    every = list(results.values())
    total = [
        sum(result.cases for result in every),
        sum(len(result.wrong) for result in every),
        sum(result.tracebacks for result in every),
        sum(result.hangs for result in every),
    ]
    peak = max(result.peak for result in every) / 2**20
    seconds = sum(sum(result.seconds.values()) for result in every)
    slowest_case = max(max(result.seconds.values()) for result in every)
    rows.append(["all", *map(str, total), f"{peak:,.0f}", f"{seconds:.1f}", f"{slowest_case:.1f}"])
    head = ["group", "cases", "wrong", "tracebacks", "hangs", "peak MiB", "s", "slowest s"]
    print(table_text(head, rows, right=range(1, len(head))))
    for result in every:
        print("\n".join(result.wrong), end="")
    return int(any(result.wrong for result in every))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or GROUPS))
