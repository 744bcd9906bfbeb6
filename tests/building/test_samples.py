"""Which rows are read, and how, as the recipe says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.recipe_keys import SAMPLES, has_its_effect


@pytest.mark.parametrize("key", SAMPLES)
def test_key_has_its_effect(key: str, tmp_path: Path) -> None:
    has_its_effect(SAMPLES, key, tmp_path)
