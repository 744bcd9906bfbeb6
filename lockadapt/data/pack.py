"""Counts the tokens of samples that share their common prefixes."""

from __future__ import annotations

from collections.abc import Sequence

from lockadapt.data.encode import Encoded


def count_tokens(items: Sequence[Encoded]) -> tuple[int, int]:
    """Tokens of all samples, and what is left of them when those with the same images share their common prefixes."""
    whole = shared = 0
    groups: dict[tuple[str, ...], list[list[int]]] = {}
    for item in items:
        whole += len(item.input_ids)
        groups.setdefault(tuple(image.key for image in item.images), []).append(item.input_ids.tolist())
    for keys, rows in groups.items():
        before: list[int] = []
        # In sorted order the longest prefix that a row shares with any earlier one is shared with its neighbour.
        for row in sorted(rows):
            common = 0
            while keys and common < min(len(before), len(row)) and before[common] == row[common]:
                common += 1
            shared += len(row) - common
            before = row
    return whole, shared
