"""What adapters are made from, as the recipe says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.recipe_keys import EXPERIMENT, has_its_effect


@pytest.mark.parametrize("key", EXPERIMENT)
def test_key_has_its_effect(key: str, tmp_path: Path) -> None:
    has_its_effect(EXPERIMENT, key, tmp_path)
