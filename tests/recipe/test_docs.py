"""`docs/recipes.md` is what its script writes from the schema, and whole recipes in the documentation are well formed."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from lockadapt.recipe.keys import every_key
from lockadapt.recipe.read import load_recipe

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "make_recipe_docs.py"


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
    assert "| `rank` | whole number > 0, ≤ 8192 | `16` |" in new
    with pytest.raises(ValueError, match="lacks"):
        script.updated("no markers")


@pytest.mark.parametrize("page", ["README.md", "docs/recipes.md"])
def test_whole_recipes_in_the_documentation_are_well_formed(page: str, tmp_path: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    recipes = re.findall(r"^```yaml\n(model:\n.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert recipes
    for recipe in recipes:
        (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
        load_recipe(tmp_path / "recipe.yaml")
