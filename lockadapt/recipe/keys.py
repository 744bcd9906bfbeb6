"""Reads a recipe's keys off the schema: what a key path leads to, accepts, and was meant to be."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from lockadapt.recipe.schema import Recipe
from lockadapt.recipe.sections import KeyPath

MAX_PARTS, MAX_NAME = 20, 100
"""Of a key path for which a near one is looked for."""
FREE = "<name>"
"""Stands in a key path for a name that the user chooses."""
POSITION = "<n>"
"""Stands in a key path for a position in a list."""


def dotted(path: KeyPath) -> str:
    """`("stages", 0, "name")` as the user writes it: `stages.0.name`."""
    return ".".join(str(part) if str(part).isprintable() else repr(part) for part in path)


def key_path(text: str) -> KeyPath:
    """`stages.0.name` as `("stages", 0, "name")`.

    Names never begin with a digit, so digits are a position.
    """
    parts = (part.strip() for part in text.split("."))
    return tuple(int(part) if re.fullmatch("[0-9]{1,9}", part) else part for part in parts)


def child(annotation: Any, part: str | int) -> Any:
    """Return the type at `part` (a key, or a position) below a type; None where there is no such place."""
    fields = [
        branch.model_fields[part].annotation
        for branch in branches(annotation)
        if is_section(branch) and part in branch.model_fields
    ]
    if fields:
        return Union[tuple(fields)]  # noqa: UP007  # those of all kinds of objectives; equal ones become one
    for branch in branches(annotation):
        if get_origin(branch) is list and (isinstance(part, int) or part == POSITION):
            return get_args(branch)[0]
        if get_origin(branch) is dict and isinstance(part, str) and part in (child_names(branch) or (part,)):
            return get_args(branch)[1]
    return None


def at(path: KeyPath) -> Any:
    """The type that stands at a key path of a recipe; None where there is no such key."""
    annotation: Any = Recipe
    for part in path:
        annotation = child(annotation, part)
    return annotation


def child_names(annotation: Any) -> tuple[str, ...]:
    """The keys that may stand below a type; empty where they are free or there are none."""
    sections = [branch for branch in branches(annotation) if is_section(branch)]
    if sections:
        return tuple(dict.fromkeys(key for section in sections for key in section.model_fields))
    for branch in branches(annotation):
        if get_origin(branch) is dict and get_origin(get_args(branch)[0]) is Literal:
            return get_args(get_args(branch)[0])
    return ()


def branches(annotation: Any) -> tuple[Any, ...]:
    """Return a type's alternatives without None and constraints: `Annotated[int, …] | None`: `(int,)`."""
    if get_origin(annotation) is Annotated:
        return branches(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(leaf for branch in get_args(annotation) for leaf in branches(branch))
    return () if annotation in (None, type(None)) else (annotation,)


def is_section(branch: Any) -> bool:
    """Whether a type is a section of the recipe."""
    return isinstance(branch, type) and issubclass(branch, BaseModel)


def holds_keys(annotation: Any) -> bool:
    """Whether a type is a section, or a mapping with names that the user chooses."""
    return any(is_section(branch) or get_origin(branch) is dict for branch in branches(annotation))


def holds_positions(annotation: Any) -> bool:
    """Whether a type is, or may be, a list."""
    return any(get_origin(branch) is list for branch in branches(annotation))


def every_key(annotation: Any = Recipe, below: KeyPath = ()) -> Iterator[KeyPath]:
    """List all key paths of a recipe in schema order, sections too; `<name>`, `<n>` stand for free parts."""
    if any(is_section(branch) for branch in branches(annotation)):
        for name in child_names(annotation):
            yield (*below, name)
            yield from every_key(child(annotation, name), (*below, name))
    for branch in branches(annotation):
        if is_section(branch):
            continue
        if get_origin(branch) is dict:
            for name in child_names(branch) or (FREE,):
                yield (*below, name)
                yield from every_key(get_args(branch)[1], (*below, name))
        elif get_origin(branch) is list and is_section(get_args(branch)[0]):
            yield from every_key(get_args(branch)[0], (*below, POSITION))


def meaning(path: KeyPath) -> str:
    """What a key is for, from the schema; empty for names that the user chooses."""
    sections = [branch for branch in branches(at(path[:-1])) if is_section(branch)] if path else []
    fields = [section.model_fields[path[-1]] for section in sections if path[-1] in section.model_fields]
    return next((field.description or "" for field in fields), "")


NEEDLESS = {
    "streaming": "Leave it out: images are opened only when they are needed. For a part of the rows write "
    "`limit`; for a data set that is larger than the disk, save the part that you train on",
}
"""Keys of other trainers that nothing here stands for, and what to do."""


def suggestion(path: KeyPath) -> str:
    """` Did you mean lora.rank?` for a key path that does not exist; empty where nothing is near.

    A key that exists under the same name elsewhere was probably put in the wrong section, so that comes
    first; then a neighbour that is spelt alike; then a key anywhere that is spelt alike.
    """
    if len(path) > MAX_PARTS or any(len(str(part)) > MAX_NAME for part in path):
        return ""
    if path[-1] in NEEDLESS:
        return f" {NEEDLESS[path[-1]]}."
    known = next(n for n in range(len(path), -1, -1) if at(path[:n]) is not None)
    parent, wrong, rest = path[:known], str(path[known]), path[known + 1 :]
    neighbours = child_names(at(parent))
    elsewhere = {str(key[-1]): key for key in reversed(list(every_key())) if key[-2:-1] != ("columns",)}
    guess: KeyPath | None = None
    if near := get_close_matches(wrong, neighbours, n=1, cutoff=0.75):
        guess = (*parent, near[0])
    elif wrong in elsewhere:
        guess = elsewhere[wrong]
    elif near := get_close_matches(wrong, neighbours, n=1):
        guess = (*parent, near[0])
    elif near := get_close_matches(wrong, list(elsewhere), n=1, cutoff=0.75):
        guess = elsewhere[near[0]]
    if guess is None:
        return f" Known here: {', '.join(neighbours)}." if neighbours else ""
    return f" Did you mean {dotted((*guess, *rest) if at((*guess, *rest)) is not None else guess)}?"


def expected(annotation: Any) -> str:
    """What may stand at a place, in plain English: `a whole number`, `one of none, nf4, int8`."""
    words: list[str] = []
    options: list[str] = []
    for branch in branches(annotation):
        origin = get_origin(branch)
        if origin is Literal:
            options += get_args(branch)
        elif origin is list:
            words.append("a list")
        elif origin is dict or is_section(branch):
            words.append("a section of keys and values")
        else:
            words.append(_PLAIN[branch])
    if options:
        words.insert(0, f"one of {', '.join(options)}" if len(options) > 1 else str(options[0]))
    return " or ".join(dict.fromkeys(words))


_PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
