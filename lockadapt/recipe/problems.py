"""What pydantic says of a recipe, in plain English and at the key path that the user wrote."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from lockadapt.recipe.keys import at, branches, child, expected, meaning, suggestion
from lockadapt.recipe.objectives import KINDS
from lockadapt.recipe.schema import InconsistentError, Recipe
from lockadapt.recipe.sections import KeyPath

MAX_PROBLEMS = 100


def in_english(error: ValidationError) -> list[tuple[KeyPath, str]]:
    """The problems of a recipe, all of them or the first `MAX_PROBLEMS`, as (key path, text).

    Each branch of a union complains for itself: of several complaints at one place one is kept, the more
    telling one, and where an item of a list is wrong, the complaint about the list is dropped.
    """
    telling: list[tuple[KeyPath, str]] = []
    mistyped: dict[KeyPath, str] = {}
    for details in error.errors(include_url=False)[:MAX_PROBLEMS]:
        kind, context, value = details["type"], details.get("ctx", {}), details["input"]
        unknown = kind == "extra_forbidden" or details["loc"][-1:] == ("[key]",)
        path = _key_path(details["loc"], unknown)
        if isinstance(context.get("error"), InconsistentError):
            telling += [((*path, *below), text) for below, text in context["error"].problems]
        elif unknown and at(path) is not None:
            telling.append((path, f"objectives of kind {details['loc'][2]} have no such key; remove it"))
        elif unknown:
            telling.append((path, f"unknown key.{suggestion(path)}"))
        elif kind == "missing":
            telling.append((path, f"required, but missing ({meaning(path)})"))
        elif kind in ("too_short", "string_too_short"):
            telling.append((path, "should not be empty"))
        elif kind in _BOUNDS:
            word, name = _BOUNDS[kind]
            telling.append((path, f"should be {word} {context[name]:,.10g}, got {shown(value)}"))
        elif kind == "finite_number":
            telling.append((path, f"should be a finite number, got {shown(value)}"))
        elif kind == "string_unicode":
            telling.append((path, "holds a character that text cannot hold"))
        elif kind == "union_tag_not_found":
            text = f"needs a `kind` ({', '.join(KINDS)}), as its name is none of them"
            telling.append((path, text))
        elif kind == "union_tag_invalid":
            path, value = (*path, "kind"), value["kind"]
            mistyped[path] = f"should be {expected(at(path))}, got {shown(value)}{_advice(value, at(path))}"
        else:
            mistyped[path] = f"should be {expected(at(path))}, got {shown(value)}{_advice(value, at(path))}"
    paths = [path for path, _ in telling] + list(mistyped)
    return telling + [(path, text) for path, text in mistyped.items() if not _outdone(path, paths)]


def shown(value: Any) -> str:
    """A value as the user would recognise it, in a few words."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (dict, list)):
        kind = "a section" if isinstance(value, dict) else "a list"
        return kind if value else kind.replace("a ", "an empty ")
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a number of more than 30 digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}


def _key_path(location: tuple[str | int, ...], unknown: bool) -> KeyPath:
    """Pydantic's place without the names of union branches, which it puts between the keys."""
    path: KeyPath = ()
    annotation: Any = Recipe
    keys = [part for part in location if part != "[key]"]
    for number, part in enumerate(keys):
        below = child(annotation, part)
        if below is not None:
            path, annotation = (*path, part), below
        elif unknown and number == len(keys) - 1:
            path = (*path, part)
    return path


def _outdone(path: KeyPath, paths: list[KeyPath]) -> bool:
    """Whether there is a complaint about something inside, or a more telling one about the same place."""
    inside = any(len(other) > len(path) and other[: len(path)] == path for other in paths)
    return inside or paths.count(path) > 1


def _advice(value: Any, annotation: Any) -> str:
    """Return how to fix a value of the wrong type, for common mistakes."""
    kinds = branches(annotation)
    choices = [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if isinstance(value, str):
        near = get_close_matches(value.lower(), choices, n=1)
        if near:
            return f". Did you mean {near[0]}?"
        if (int in kinds or float in kinds) and value.replace("_", "").replace(".", "", 1).isdigit():
            return "; write it without quotes and underscores"
    elif str in kinds and isinstance(value, (int, float)):
        return "; put it in quotes"
    elif str in kinds and isinstance(value, dict):
        return "; text with `: ` or braces in it belongs in quotes"
    elif int in kinds and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"; write {int(value)}"
    return ""
