"""What stored values of a data set stand for: class labels their names, JSON text its values."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

Decoders = dict[str, Callable[[Any], Any]]
"""By column; none for columns whose stored values are those that they stand for."""


def decoders(features: Mapping[str, Any]) -> Decoders:
    """What turns stored values into those that they stand for.

    Args:
        features: of a data set of `datasets`, by column.

    Returns:
        By column.
    """
    return {key: decode for key, kind in features.items() if (decode := _decoder(kind))}


def told_decoders(metadata: Mapping[bytes, bytes] | None) -> Decoders:
    """The same by what `datasets` writes into the schema of a parquet file.

    Args:
        metadata: of the schema.

    Returns:
        By column; empty where it tells nothing that can be read.
    """
    told = (metadata or {}).get(b"huggingface", b"")
    if b'"ClassLabel"' not in told and b'"Json"' not in told:
        return {}
    import datasets

    try:
        return decoders(datasets.Features.from_dict(json.loads(told)["info"]["features"]))
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def _decoder(kind: Any) -> Callable[[Any], Any] | None:
    """What turns the stored values of a feature into those that it stands for; None where they are the same.

    Columns of mixed types are stored as JSON text (the feature `Json`), class labels as numbers; both may
    stand in lists and structs.
    """
    if hasattr(kind, "int2str"):
        return lambda value: None if value is None else kind.int2str(value)
    if type(kind).__name__ == "Json":
        return lambda value: json.loads(value) if isinstance(value, (str, bytes)) else value
    if isinstance(kind, Mapping):
        inner = {key: decode for key, part in kind.items() if (decode := _decoder(part))}

        def decode_struct(value: Any) -> Any:
            if not isinstance(value, dict):
                return value
            return {key: inner[key](part) if key in inner else part for key, part in value.items()}

        return decode_struct if inner else None
    element = kind[0] if isinstance(kind, list) and kind else getattr(kind, "feature", None)
    decode_element = None if element is None else _decoder(element)
    if decode_element is None:
        return None
    return lambda value: [decode_element(part) for part in value] if isinstance(value, list) else value
