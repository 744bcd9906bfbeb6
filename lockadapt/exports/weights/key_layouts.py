"""Which dialect of keys is written: the one that every client reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lockadapt.architectures import find_architecture
from lockadapt.errors import VerificationError
from lockadapt.exports.weights.names import Names, read_names


def client_keys(model: Any, names: Names) -> Mapping[str, str]:
    """Gives the keys that vLLM, llama.cpp and Transformers before 5.6 read too, of those that differ.

    Args:
        model: the stock class on the meta device.
        names: of the folder's keys.

    Returns:
        Key on the disk -> key that they read.

    Raises:
        VerificationError: today's Transformers would not read the new keys as it read the old ones.
    """
    architecture = find_architecture(model.config)
    if architecture is None or architecture.keys is None:
        return {}
    keys = architecture.keys(model, names.stock)
    if not keys:
        return {}
    renamed = {keys.get(key, key): name for key, name in names.stock.items()}
    if dict(read_names(model, [*renamed, *names.converted], "the new keys").stock) != renamed:
        raise VerificationError("Transformers would read the tower's keys for clients as other parameters")
    return keys
