"""Runs that start from a tiny existing vision-language model of `tests.support.zoo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lockadapt.recipe.read import load_recipe
from lockadapt.recipe.schema import Recipe
from tests.support.runs import values
from tests.support.zoo import Entry, entry_of


def written(name: str, folder: Path) -> Path:
    entry: Entry = entry_of(name)
    if missing := entry.missing():
        pytest.skip(f"its processor needs {' and '.join(missing)}")
    entry.write(folder)
    return folder


def recipe_for(vlm: Path, folder: Path, **changes: Any) -> Recipe:
    plain = values(folder, folder, **changes)
    plain["model"] = {"vlm": str(vlm), "dtype": "float32", **changes.get("model", {})}
    plain["training"] = {"steps": 3, "batch_size": 4, "learning_rate": 1e-2, "projector_learning_rate": 1e-2}
    return load_recipe(None, (), plain).recipe
