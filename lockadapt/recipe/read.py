"""From a recipe file, overrides and Python values to one checked `Recipe`, with all problems at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lockadapt.errors import RecipeError
from lockadapt.recipe.document import Document, Origin, Problem, parse, read_text
from lockadapt.recipe.keys import at, key_path, suggestion
from lockadapt.recipe.overrides import apply_override, lay_over
from lockadapt.recipe.problems import MAX_PROBLEMS, in_english, shown
from lockadapt.recipe.schema import Recipe
from lockadapt.recipe.sections import KeyPath


@dataclass(frozen=True)
class LoadedRecipe:
    """A checked recipe, the file that it came from (if any), and where each of its values was given.

    Attributes:
        recipe: the recipe.
        path: its file; None where there is none.
        origins: where each value was given, by key path.
        notices: one for each key that is called otherwise now, for whoever wrote it.
    """

    recipe: Recipe
    path: Path | None
    origins: Mapping[KeyPath, Origin] = field(repr=False)
    notices: tuple[str, ...] = ()

    def source_of(self, key: str) -> str:
        """Return where the value of a key was given.

        A section's source is that of its own line.

        Args:
            key: dotted path, such as `stages.0.steps`.

        Returns:
            `default`, `recipes/x.yaml:14`, `override`, or `values` for what a Python caller passed.

        Raises:
            RecipeError: no recipe has such a key.
        """
        path = key_path(key)
        if at(path) is None:
            raise RecipeError(f"unknown key.{suggestion(path)}", where=key)
        return self.origins[path].source if path in self.origins else "default"


def load_recipe(
    path: str | Path | None, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None
) -> LoadedRecipe:
    """Read and check a recipe. Later wins: defaults, the file, `values`, `overrides`.

    Args:
        path: a YAML file; None to build the recipe from `values` and `overrides` alone.
        overrides: `key.path=value` with a YAML value; a list is entered by position (`stages.0.steps=10`).
        values: nested plain values given by Python code; sections are merged, lists are replaced.

    Returns:
        The recipe, and where each value came from.

    Raises:
        RecipeError: the recipe is wrong; its message holds one line for each problem, `file:line: key:
            problem`.
        SafetyError: the file, or an override, asks for a Python object.
    """
    label = "recipe" if path is None else str(path)
    top = Origin(label, label, (0, 0))
    document = Document(value={}, origins={(): top})
    if path is not None:
        document = parse(
            read_text(Path(path)), lambda line: Origin(f"{label}:{line}", f"{label}:{line}", (0, line))
        )
        if not isinstance(document.value, dict):
            raise RecipeError(_lines(document.problems) or f"{label}:1: {_not_a_recipe(document.value)}")
        document.rename_former_keys()
    if values is not None:
        lay_over(document, values, Origin("values", "values", (1, 0)))
    for number, text in enumerate(overrides):
        apply_override(document, text, number)
    try:
        recipe = Recipe.model_validate(document.value)
    except ValidationError as error:
        known = [problem.path for problem in document.problems]
        document.problems += [
            Problem(_nearest(document, where), where, text)
            for where, text in in_english(error)
            if where not in known  # what could not be read stands as null: that it is null is no news
        ]
    if document.problems:
        raise RecipeError(_lines(document.problems))
    notices = tuple(document.notices.values())
    return LoadedRecipe(recipe, None if path is None else Path(path), document.origins, notices)


def _nearest(document: Document, path: KeyPath) -> Origin:
    """Where a key was given or, of one that was not, the section that it belongs in."""
    return next(document.origins[path[:n]] for n in range(len(path), -1, -1) if path[:n] in document.origins)


def _lines(problems: Sequence[Problem]) -> str:
    """One line for each problem, in the order of the file, then of the overrides."""
    ordered = sorted(problems, key=lambda problem: problem.origin.order)
    lines = list(dict.fromkeys(str(problem) for problem in ordered))
    more = [f"and {len(lines) - MAX_PROBLEMS} problems more"] if len(lines) > MAX_PROBLEMS else []
    return "\n".join(lines[:MAX_PROBLEMS] + more)


def _not_a_recipe(value: Any) -> str:
    """Why a YAML document is no recipe at all."""
    if value is None:
        return "the recipe is empty; it needs `model` and `objectives`"
    return f"a recipe is a section of keys and values, got {shown(value)}"
