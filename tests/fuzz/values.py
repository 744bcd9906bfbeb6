"""Strategies: JSON values that nobody expects, documents with a few of them in place of what stood there, and bytes."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

ODD_TEXTS = (
    *(
        "",
        " ",
        "\0",
        "\x1b[31m",
        "../x",
        "/etc/passwd",
        "~",
        "<image>",
        "</s>",
        "{}",
        "{0.__class__}",
        "[",
        "nan",
    ),
    *(
        "e\u0301",
        "\u202e",
        "\ud800",
        "1e999",
        "true",
        "null",
        "a\nb",
        "x" * 2000,
        "(a+)+$",
        "{{ 1/0 }}",
        "org/name",
    ),
)
ODD_NUMBERS = (0, -1, 1, 2, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("inf"), float("-inf"), float("nan"))

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(ODD_NUMBERS),
    st.sampled_from(ODD_TEXTS),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
)
json_values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(ODD_TEXTS), st.text(max_size=8)), inner, max_size=4),
    ),
    max_leaves=8,
)


@st.composite
def edited(draw: st.DrawFn, document: Any, most: int = 3) -> Any:
    """A plain document with up to `most` entries replaced, removed, added or moved."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, most))):
        holders = [holder for holder in _holders(document) if holder]
        if not holders:
            return document
        holder = draw(st.sampled_from(holders))
        keys: list[Any] = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = draw(st.sampled_from(keys))
        match draw(st.sampled_from(("replace", "replace", "remove", "add", "copy"))):
            case "replace":
                holder[key] = draw(json_values)
            case "remove":
                del holder[key]
            case "add" if isinstance(holder, dict):
                holder[draw(st.text(max_size=8))] = draw(json_values)
            case "add":
                holder.insert(key, draw(json_values))
            case _:
                other = draw(st.sampled_from(holders))
                others: list[Any] = list(other) if isinstance(other, dict) else list(range(len(other)))
                if others:
                    holder[key] = copy.deepcopy(other[draw(st.sampled_from(others))])
    return document


@st.composite
def torn(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes with a few flipped, cut out, doubled or put in."""
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(data)))
        end = min(len(data), begin + draw(st.sampled_from((0, 1, 2, 8, 100))))
        match draw(st.sampled_from(("flip", "cut", "put", "double", "end"))):
            case "flip":
                data = data[:begin] + bytes(byte ^ 0xFF for byte in data[begin:end]) + data[end:]
            case "cut":
                data = data[:begin] + data[end:]
            case "put":
                data = data[:begin] + draw(st.binary(max_size=12)) + data[begin:]
            case "double":
                data = data[:end] + data[begin:]
            case _:
                data = data[:begin]
    return data


def json_bytes(value: Any) -> bytes:
    """JSON as the most careless writer would write it: lone surrogates and NaN go through."""
    return json.dumps(value).encode()


def _holders(value: Any) -> list[Any]:
    inner = (
        list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, list) else []
    )
    own = [value] if isinstance(value, (dict, list)) else []
    return own + [holder for item in inner for holder in _holders(item)]
