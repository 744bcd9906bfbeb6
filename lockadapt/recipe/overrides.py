"""Changes to a recipe from outside its file: `key.path=value` from a command line, and values from Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lockadapt.recipe.document import Document, Origin, Problem, parse
from lockadapt.recipe.former_keys import present_path
from lockadapt.recipe.keys import at, child, dotted, holds_keys, holds_positions, key_path, suggestion
from lockadapt.recipe.schema import Recipe
from lockadapt.recipe.sections import KeyPath

_SHOWN = 300
"""Characters of an override that a message repeats."""


def apply_override(document: Document, text: str, number: int) -> None:
    """Set one value in place, `key.path=value`; what is wrong with it joins the document's problems.

    Sections on the way that are absent or null are opened. `number` is the override's position among all.
    """
    key, separator, value_text = text.partition("=")
    given_path = key_path(key)
    path = present_path(given_path)
    shown = repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
    origin = Origin(f"override {shown}", "override", (2, number), path)
    if path != given_path:
        document.note_former_key(given_path[: _first_difference(given_path, path) + 1], origin)
    if not separator or "" in path:
        document.problems.append(Problem(origin, (), "write it as key.path=value, such as lora.rank=8"))
        return
    wrong = _no_such_place(document.value, path)
    if wrong:
        document.problems.append(Problem(origin, (), wrong))
        return
    given = parse(value_text, lambda line: origin, below=path)
    for problem in given.problems:
        advice = "" if problem.path else "; put the value in quotes if it is text"
        document.problems.append(Problem(origin, problem.path, problem.text + advice))
    if not given.problems and _open(document, path[:-1], origin):
        _put(document, path, given.value, given.origins | {path: origin})
        document.rename_former_keys()


def lay_over(document: Document, values: Mapping[str, Any], origin: Origin, below: KeyPath = ()) -> None:
    """Merge nested Python values into the document: sections are merged, all else is replaced.

    Paths become text and tuples become lists, as they would stand in a file.
    """
    for key, value in values.items():
        path = present_path((*below, key))
        if path[-1] != key:
            document.note_former_key((*below, key), origin)
        if not isinstance(key, str):
            document.problems.append(Problem(origin, below, f"the key {key!r} is not text"))
        elif isinstance(value, Mapping) and holds_keys(at(path)) and not _is_list(document.value, path):
            if _open(document, path, origin):
                lay_over(document, value, origin, path)
        else:
            plain = _plain(value)
            _put(document, path, plain, dict.fromkeys(_paths(plain, path), origin))
            document.rename_former_keys()


def _first_difference(first: KeyPath, other: KeyPath) -> int:
    return next(n for n, (ours, theirs) in enumerate(zip(first, other, strict=True)) if ours != theirs)


def _no_such_place(value: Any, path: KeyPath) -> str:
    """Why an override's key path leads nowhere in this recipe; empty where it leads somewhere."""
    annotation: Any = Recipe
    for number, part in enumerate(path):
        here = dotted(path[:number])
        listed = isinstance(value, list) or not holds_keys(annotation)
        if holds_positions(annotation) and listed and not isinstance(part, int):
            return f"{here} is a list: name an entry by its position, such as {here}.0"
        annotation = child(annotation, part)
        if annotation is None:
            return f"unknown key.{suggestion(path)}"
        if isinstance(part, int):
            if not isinstance(value, list):
                return f"{here} is not a list in this recipe"
            if part >= len(value):
                return f"{here} has {len(value)} entries, and positions count from 0"
            value = value[part]
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return ""


def _open(document: Document, path: KeyPath, origin: Origin) -> bool:
    """Make sure that a section stands at a path, opening those that are absent or null.

    False where something else stands in the way: that is an error which the check of the whole reports.
    """
    here = document.value
    for number, part in enumerate(path):
        if isinstance(here, dict) and here.get(str(part)) is None:
            here[str(part)] = {}
            document.origins[path[: number + 1]] = origin
        if not _fits(here, part):
            return False
        here = here[part]  # type: ignore[index]
    return isinstance(here, (dict, list))


def _put(document: Document, path: KeyPath, value: Any, origins: Mapping[KeyPath, Origin]) -> None:
    """Replace what stands at a path, with the origins of everything in it.

    Nothing where a list stands in a section's place or the reverse: the check of the whole reports it.
    """
    here = document.value
    for part in path[:-1]:
        here = here[part]
    if not _fits(here, path[-1]):
        return
    here[path[-1]] = value
    for old in [origin for origin in document.origins if origin[: len(path)] == path]:
        del document.origins[old]
    document.origins.update(origins)


def _fits(holder: Any, part: str | int) -> bool:
    """Whether a part of a key path can lead into a value: a key into a section, a position into a list."""
    if isinstance(holder, list):
        return isinstance(part, int) and part < len(holder)
    return isinstance(holder, dict) and isinstance(part, str)


def _is_list(value: Any, path: KeyPath) -> bool:
    """Whether a list stands at a path."""
    for part in path:
        if not (isinstance(value, dict) and part in value):
            return False
        value = value[part]
    return isinstance(value, list)


def _paths(value: Any, path: KeyPath) -> Iterator[KeyPath]:
    """The key paths of a value and of all in it."""
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for part, inner in pairs:
        yield from _paths(inner, (*path, part))


def _plain(value: Any) -> Any:
    """A Python value as it would stand in a file."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
