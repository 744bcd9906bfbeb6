"""Two kills of one of two processes; `python -m tests.kill.ranks` makes 32."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import ON_GPU
from tests.kill.ranks import killed_and_gone_on, prepare

pytestmark = [pytest.mark.slow, pytest.mark.skipif(ON_GPU, reason="gloo, on CPUs")]


def test_a_killed_process_changes_no_weight(tmp_path: Path) -> None:
    prepare(tmp_path, ["fsdp"])
    assert killed_and_gone_on(tmp_path, "fsdp", rank=0, step=6, elastic=False)
    assert killed_and_gone_on(tmp_path, "fsdp", rank=1, step=4, elastic=True)
