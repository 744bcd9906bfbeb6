"""All hostile cases, the process that runs them, and how a group of them ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.hostile import commands, existing, formats, images, models, recipes, rows, shards
from tests.hostile.case import Case

CASES: list[Case] = [
    *images.CASES,
    *rows.CASES,
    *formats.CASES,
    *shards.CASES,
    *recipes.CASES,
    *commands.CASES,
    *models.CASES,
    *existing.CASES,
]
GROUPS = list(dict.fromkeys(case.group for case in CASES))
MEMORY = 1536 * 1024**2
"""Bytes that a case may map on top of what the process has."""
SECONDS = 60
"""Far more than any case needs: two cores are shared by other tests."""


class Server:
    """Runs commands in forks of one warm process."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.server"],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MALLOC_ARENA_MAX": "2"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, case: Case, folder: Path) -> dict[str, Any]:
        """How the command ended."""
        request = {"arguments": case.arguments, "cwd": str(folder), "memory": MEMORY, "seconds": SECONDS}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()


@dataclass
class GroupResult:
    """How a group ended.

    Attributes:
        cases: how many.
        tracebacks, hangs: of them, those that ended so.
        wrong: what is wrong, a text a case.
        peak: bytes of memory of the largest process.
        seconds: by case.
    """

    cases: int = 0
    tracebacks: int = 0
    hangs: int = 0
    wrong: list[str] = field(default_factory=list)
    peak: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def run_group(group: str, server: Server, folder: Path) -> GroupResult:
    """Runs all cases of a group.

    Args:
        group: one of `GROUPS`.
        server: runs them.
        folder: an empty one; each case gets a folder in it.
    """
    result = GroupResult()
    for case in (case for case in CASES if case.group == group):
        path = folder / str(result.cases)
        path.mkdir(parents=True)
        case.write(path)
        ended = server.run(case, path)
        result.cases += 1
        result.tracebacks += "Traceback" in ended["err"] + ended["out"]
        result.hangs += ended["code"] == -14
        result.peak = max(result.peak, ended["peak"])
        result.seconds[case.what] = ended["seconds"]
        if faults := list(faults_of(case, ended)):
            result.wrong.append(f"{case.what}: {'; '.join(faults)}\n    {ended['err'].strip()[-1500:]}")
    return result


def faults_of(case: Case, ended: dict[str, Any]) -> Iterator[str]:
    """What is wrong with how a case ended."""
    output = ended["err"] + ended["out"]
    if ended["code"] != case.code:
        yield f"ended with {ended['code']}, not {case.code}"
    if "Traceback" in output:
        yield "a traceback"
    if not all(c.isprintable() or c in "\n\t" for c in output):
        yield "control characters"
    if len(output) > 20_000:
        yield f"{len(output):,} characters of messages"
    if case.code and not output.strip():
        yield "nothing is said"
    for word in case.words:
        if word not in output:
            yield f"does not say {word!r}"
