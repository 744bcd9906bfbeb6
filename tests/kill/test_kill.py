"""A few kills of every command; `make kill` makes 150."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.kill.__main__ import kill
from tests.kill.commands import Killed, commands

NAMES = ("train", "merge", "export", "cache", "search index")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Killed]:
    return commands(tmp_path_factory.mktemp("kill"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_killed_command_goes_on_to_the_same_files(
    name: str, killed: Sequence[Killed], tmp_path: Path
) -> None:
    assert [command.name for command in killed] == list(NAMES)
    command = next(command for command in killed if command.name == name)
    outcome = kill(command, tmp_path, [0], 0.1)
    assert not outcome.failures, "\n".join(outcome.failures)
    assert not outcome.differences, "\n".join(outcome.differences)
    assert outcome.kills >= 1
