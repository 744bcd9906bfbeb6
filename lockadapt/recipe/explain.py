"""What a checked recipe says: every value and where it came from, as YAML, and the schema of all recipes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from lockadapt.recipe.keys import dotted
from lockadapt.recipe.read import LoadedRecipe
from lockadapt.recipe.schema import Recipe
from lockadapt.recipe.sections import KeyPath
from lockadapt.recipe.yaml12 import dump, dump_line


def resolved(loaded: LoadedRecipe) -> list[tuple[str, Any, str]]:
    """Every value of a recipe, defaults too, as (key path, value, source), in the order of the schema.

    Sections and lists of sections are entered; other lists are one value. A source is `default`, `file:line`,
    `override` or `values`.
    """
    return [(dotted(path), value, loaded.source_of(dotted(path))) for path, value in _leaves(loaded.recipe)]


def print_config(loaded: LoadedRecipe) -> str:
    """All values in columns, for people: `key.path: value   # source`, one line each."""
    rows = [(f"{key}: {dump_line(value)}", source) for key, value, source in resolved(loaded)]
    # One long list must not push all sources out of sight.
    width = min(max(len(text) for text, _ in rows), 72)
    return "\n".join(f"{text:<{width}}  # {source}" for text, source in rows)


def as_yaml(recipe: Recipe) -> str:
    """Write the whole recipe as YAML, defaults too; `load_recipe` reads exactly the same recipe back."""
    return dump(recipe.model_dump())


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of recipes, for editors and other tools."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Recipe.model_json_schema(),
        "title": "lockadapt recipe",
    }


def _leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """The values that are no sections, with their key paths."""
    if isinstance(value, BaseModel):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, (*path, name))
    elif isinstance(value, list) and any(isinstance(inner, BaseModel) for inner in value):
        for number, inner in enumerate(value):
            yield from _leaves(inner, (*path, number))
    else:
        yield path, value
