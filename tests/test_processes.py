"""Processes that should work together never work alone without a word."""

from __future__ import annotations

import pytest
from accelerate.state import PartialState

from lockadapt import processes
from lockadapt.errors import SetupError


def test_a_process_that_began_alone_cannot_join(monkeypatch: pytest.MonkeyPatch) -> None:
    PartialState(cpu=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SetupError, match="already works alone") as error:
        processes.join()
    assert error.value.exit_code == 4
