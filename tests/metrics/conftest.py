"""The oracles, read once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.coco import CocoOracle, load_coco


@pytest.fixture(scope="session")
def coco(real: Path) -> CocoOracle:
    """The COCO oracle; skips where there is no real data."""
    return load_coco(real / "oracles/coco-captions")
