"""The same small sample of drawn inputs in every test run; `make fuzz` draws others for as long as it is told to."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from tests.fuzz.__main__ import table
from tests.fuzz.engine import MEMORY, Counts, fuzz
from tests.fuzz.runs import finished_and_interrupted
from tests.fuzz.targets import Target, targets

EXAMPLES = 40
NAMES = (
    *("recipes", "rows", "shards", "run folders", "checkpoints", "adapters"),
    *("safetensors headers", "model folders", "chat templates"),
)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Target]:
    return targets(*finished_and_interrupted(tmp_path_factory.mktemp("fuzz")))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_input_ends_in_a_traceback(name: str, chosen: Sequence[Target]) -> None:
    assert [target.name for target in chosen] == list(NAMES)
    target = next(target for target in chosen if target.name == name)
    counts = Counts()
    fuzz(target, max(5, round(EXAMPLES * target.share)), None, counts)
    assert not counts.faults, "\n".join(counts.faults)
    assert counts.ends.total() >= 5


def test_faults_are_seen() -> None:
    def read(value: Any, folder: Path) -> None:
        if value:
            raise KeyError("a bug")

    counts = Counts()
    fuzz(Target("mine", st.booleans(), read), 10, None, counts)
    assert counts.ends[0] == counts.ends[-1] == 1
    assert "a bug" in counts.faults[0]
    assert table({"mine": counts}, {"mine": 0.0}).splitlines()[-1].split()[-4] == "1"


def test_memory_and_crashes_are_seen() -> None:
    """Red before: what took gigabytes was counted as taken, and what crashed ended the fuzzer."""

    def read(value: Any, folder: Path) -> None:
        if value:
            bytearray(2 * MEMORY)
        os.kill(os.getpid(), signal.SIGKILL)

    counts = Counts()
    fuzz(Target("mine", st.booleans(), read), 10, None, counts)
    assert counts.ends == {-1: 2}
    assert sorted("takes more than" in fault for fault in counts.faults) == [False, True]
    assert any(f"ended with -{signal.SIGKILL.value}" in fault for fault in counts.faults)
