"""Which dialect of keys is written: the one that every client reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lockadapt.errors import VerificationError
from lockadapt.exports.weights.names import Names, read_names

NESTED = ("CLIPVisionModel", "SiglipVisionModel")
"""Towers that Transformers 5.6 flattened: vLLM, llama.cpp and older Transformers look for them below `vision_model.`"""


def client_keys(model: Any, names: Names) -> Mapping[str, str]:
    """Key on the disk -> key that vLLM, llama.cpp and Transformers before 5.6 read too, of those that differ.

    Args:
        model: the stock class on the meta device.

    Raises:
        VerificationError: today's Transformers would not read the new keys as it read the old ones.
    """
    tower = getattr(getattr(model, "model", None), "vision_tower", None)
    if type(tower).__name__ not in NESTED:
        return {}
    keys = {}
    for key, name in names.stock.items():
        suffix = name.removeprefix("model.vision_tower.")
        start = key.removesuffix(suffix)
        if suffix != name and start + suffix == key and start.endswith("vision_tower."):
            keys[key] = f"{start}vision_model.{suffix}"
    renamed = {keys.get(key, key): name for key, name in names.stock.items()}
    if dict(read_names(model, [*renamed, *names.converted], "the new keys").stock) != renamed:
        raise VerificationError("Transformers would read the tower's keys for clients as other parameters")
    return keys
