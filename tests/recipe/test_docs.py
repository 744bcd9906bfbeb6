"""`docs/recipes.md` is what its script writes from the schema, and holds every key."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from lockadapt.recipe.keys import every_key

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_recipe_docs.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("make_recipe_docs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_file_is_up_to_date(script: ModuleType) -> None:
    text = script.FILE.read_text(encoding="utf-8")
    assert script.updated(text) == text, "run python scripts/make_recipe_docs.py"


def test_every_key_has_a_row(script: ModuleType) -> None:
    rows = {line.split("|")[1].strip(" `") for line in script.tables().splitlines() if line.startswith("| `")}
    wanted = {str(key[-1]) for key in every_key() if key[-1] != "<name>" and "columns" not in key[:-1]}
    assert wanted == rows


def test_prose_is_left_alone_and_markers_are_needed(script: ModuleType) -> None:
    text = f"before\n{script.BEGIN}\nold table\n{script.END}\nafter\n"
    new = script.updated(text)
    assert new.startswith("before\n")
    assert new.endswith("\nafter\n")
    assert "old table" not in new
    assert "| `rank` | whole number > 0 | `16` |" in new
    with pytest.raises(ValueError, match="lacks"):
        script.updated("no markers")
