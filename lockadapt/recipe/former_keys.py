"""Keys that were renamed: recipes with their former names are read, and told what the keys are called now."""

from __future__ import annotations

from typing import Any

from lockadapt.recipe.sections import KeyPath

ANY = "*"
FORMER_KEYS: dict[KeyPath, str] = {
    ("data", "row_tokens"): "max_row_tokens",
    ("data", "samples_per_image"): "max_samples_per_image",
    ("objectives", ANY, "ratio"): "sampling_weight",
    ("objectives", ANY, "code_noise"): "image_token_noise",
    ("objectives", ANY, "drawing_seed"): "generation_seed",
    ("stages", ANY, "ratios"): "sampling_weights",
}
"""Key path, `*` for a name or a position, and what its last key is called now."""


def present_path(path: KeyPath) -> KeyPath:
    """Return a key path as it is now.

    Args:
        path: of any key; former names may stand in it.

    Returns:
        The path with the present name; the same path where nothing was renamed.
    """
    for former, now in FORMER_KEYS.items():
        size = len(former)
        if len(path) >= size and all(key in (ANY, own) for key, own in zip(former, path, strict=False)):
            return (*path[: size - 1], now, *path[size:])
    return path


def with_present_keys(recipe: Any) -> Any:
    """Return the plain values of a recipe with every key as it is called now.

    Args:
        recipe: a mapping, if it is well formed; left as it is.

    Returns:
        A recipe in which former names are replaced, but where the present name is given as well.
    """
    return _renamed(recipe, ())


def _renamed(value: Any, path: KeyPath) -> Any:
    if len(path) > 2:  # nothing deeper was ever renamed
        return value
    if isinstance(value, list):
        return [_renamed(item, (*path, number)) for number, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    renamed = {}
    for key, inner in value.items():
        now = present_path((*path, key))[-1]
        renamed[key if now in value else now] = _renamed(inner, (*path, key))
    return renamed
