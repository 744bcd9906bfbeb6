"""Every recipe key has a test that shows its effect: in `tests/support/recipe_keys.py`, or one that is named there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lockadapt.recipe.schema import Recipe
from tests.support.recipe_keys import ELSEWHERE, GROUNDING, ITC, SEEN, T2I

ROOT = Path(__file__).resolve().parents[2]


def test_every_key_is_accounted_for() -> None:
    keys = {
        key
        for key in _keys(Recipe)
        if key not in ("model", "data", "training", "evaluation", "stages", "objectives")
    }
    keys -= {"objectives.train"}
    special = {f"objectives.{key}" for key in (*ITC, *T2I, *GROUNDING)}
    assert keys == set(SEEN) | set(ELSEWHERE) | special


@pytest.mark.parametrize("key", ELSEWHERE)
def test_named_tests_exist(key: str) -> None:
    file, _, name = ELSEWHERE[key].partition("::")
    assert (ROOT / file).exists(), file
    assert not name or f"def {name}(" in (ROOT / file).read_text()


def _keys(model: Any, prefix: str = "") -> list[str]:
    """Dotted keys of a pydantic section; names of objectives and positions of stages are left out."""
    from typing import get_args

    from pydantic import BaseModel

    keys = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        keys.append(key)
        if key in ("objectives.validation", "objectives.test"):
            continue
        pending, inner = [field.annotation], list[Any]()
        while pending:
            part = pending.pop()
            if isinstance(part, type) and issubclass(part, BaseModel):
                inner.append(part)
            pending += get_args(part)
        for section in inner:
            keys += _keys(section, f"{key}.")
    return keys
