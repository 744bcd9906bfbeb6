"""Every hostile case ends as the table says: its exit code, its words, no traceback, within its memory and time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hostile import commands, formats, images, models, recipes, rows
from tests.hostile.case import Case

CASES: list[Case] = [
    *images.CASES,
    *rows.CASES,
    *formats.CASES,
    *recipes.CASES,
    *commands.CASES,
    *models.CASES,
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


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.process.kill()
    running.process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_group(group: str, server: Server, tmp_path: Path, record_property: Any) -> None:
    wrong, peak, times = [], 0, {}
    mine = [case for case in CASES if case.group == group]
    for number, case in enumerate(mine):
        folder = tmp_path / str(number)
        folder.mkdir()
        case.write(folder)
        ended = server.run(case, folder)
        peak, times[case.what] = max(peak, ended["peak"]), ended["seconds"]
        faults = list(faults_of(case, ended))
        if faults:
            wrong.append(f"{case.what}: {'; '.join(faults)}\n    {ended['err'].strip()[-1500:]}")
    slowest = max(times, key=lambda what: times[what])
    print(
        f"{group:<10} {len(mine):4} cases, peak {peak / 2**20:4,.0f} MiB, {sum(times.values()):5.1f} s, "
        f"slowest {times[slowest]:.1f} s: {slowest[:60]}"
    )
    record_property("cases", len(mine))
    assert not wrong, "\n" + "\n".join(wrong)


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


def test_the_table_is_sound() -> None:
    """Names are unique within a group, and every failure is told by at least one word."""
    names = Counter((case.group, case.what) for case in CASES)
    assert [name for name, count in names.items() if count > 1] == []
    assert [case.what for case in CASES if case.code and not case.words] == []
    assert len(CASES) >= 200
