"""Every hostile case ends as the table says: its exit code, its words, no traceback, within its memory and time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.table import CASES, GROUPS, Server, run_group


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_group(group: str, server: Server, tmp_path: Path) -> None:
    result = run_group(group, server, tmp_path)
    assert not result.wrong, "\n" + "\n".join(result.wrong)


def test_the_table_is_sound() -> None:
    """Names are unique within a group, and every failure is told by at least one word."""
    names = Counter((case.group, case.what) for case in CASES)
    assert [name for name, count in names.items() if count > 1] == []
    assert [case.what for case in CASES if case.code and not case.words] == []
    assert len(CASES) >= 200
