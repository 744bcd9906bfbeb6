"""Reads the recipe that a verb names, and says on stderr which of its keys are called otherwise now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lockadapt.console import emit

if TYPE_CHECKING:
    from lockadapt.recipe.read import LoadedRecipe


def read_recipe(recipe: Path, overrides: Sequence[str] | None) -> LoadedRecipe:
    """Read and check a recipe.

    Args:
        recipe: the YAML file.
        overrides: `key.path=value`, as the command line has them.

    Returns:
        The recipe.
    """
    from lockadapt.recipe.read import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    for notice in loaded.notices:
        emit(f"note: {notice}", error=True)
    return loaded
