"""Commits of what is streamed from the Hub: a run names them before its first step, and keeps to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lockadapt.data.shards.hub import commit_of
from lockadapt.recipe.schema import Recipe


def pin_revisions(recipe: Recipe, begun: Callable[[], Recipe] | None) -> Recipe:
    """Names the commit of every Hub id that is streamed, so that a run reads the same bytes to its end.

    Args:
        recipe: checked already.
        begun: reads the same recipe with commits, where a run has begun; None: the newest ones are asked for.

    Returns:
        The recipe; itself where there is nothing to name.

    Raises:
        DataError: the Hub cannot be reached, or there is no such data set.
    """
    values = recipe.model_dump(mode="json")
    unnamed = {key: section for key, section in _streamed(values) if section["revision"] is None}
    if not unnamed:
        return recipe
    known = {} if begun is None else dict(_streamed(begun().model_dump(mode="json")))
    commits: dict[str, str] = {}
    for key, section in unnamed.items():
        name = section["path"]
        if key in known and known[key]["path"] == name:
            section["revision"] = known[key]["revision"]
        else:
            section["revision"] = commits[name] = commits.get(name) or commit_of(name)
    return Recipe.model_validate(values)


def _streamed(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str, int], dict[str, Any]]]:
    """The sources of a recipe's plain values that are streamed from the Hub, by where they stand."""
    for name, objective in values["objectives"].items():
        for part in ("train", "validation", "test"):
            held = objective.get(part)
            for number, section in enumerate(held if isinstance(held, list) else [held] if held else []):
                if section["streaming"]:
                    yield (name, part, number), section
