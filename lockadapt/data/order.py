"""The order of the rows of an epoch: a mapped file, made block by block, a function of the seed alone."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

BLOCK = 250_000
"""Groups, or runs of rows, that are ordered at a time."""


def epoch_order(grouped: Array, starts: Array, longest: int, seed: int, folder: Path) -> Array:
    """Shuffles rows so that some of one image follow each other.

    Each group of rows is shuffled and cut into runs of nearly equal length, none longer than `longest`; the
    runs of all groups are then put in random order. With 1, this is a permutation of all rows.

    Args:
        grouped: uint32 (rows,), the rows, group by group.
        starts: (groups + 1,), where each group begins in it.
        longest: the most rows of a group that follow each other.
        seed: same seed, same order; another one for each epoch.
        folder: where the file lies that the order is in; it has no name, and ends with the array.

    Returns:
        uint32 (rows,), mapped.
    """
    rows, groups = len(grouped), len(starts) - 1
    inner, order = _array(rows, folder), _array(rows, folder)
    parts = np.empty(groups, np.uint32)
    for group in range(0, groups, BLOCK):
        begins = starts[group : group + BLOCK + 1].astype(np.int64)
        own = np.asarray(grouped[begins[0] : begins[-1]])
        sizes = np.diff(begins)
        # Group and random number in one key, which is sorted in a third of the time of two.
        owners = np.repeat(np.arange(len(sizes), dtype=np.uint64), sizes)
        keys = (owners << np.uint64(40)) | (_mixed(own, seed) >> np.uint64(24))
        inner[begins[0] : begins[-1]] = own[np.argsort(keys, kind="stable")]
        parts[group : group + BLOCK] = -(-sizes // longest)
    ends = np.cumsum(parts, dtype=np.int64)
    group_of = np.repeat(np.arange(groups, dtype=np.uint32), parts)
    runs = np.random.Generator(np.random.Philox(seed)).permutation(np.arange(ends[-1], dtype=np.uint32))
    at = 0
    for first in range(0, len(runs), BLOCK):
        run = runs[first : first + BLOCK].astype(np.int64)
        owner = group_of[run]
        part, count = run - (ends[owner] - parts[owner]), parts[owner].astype(np.int64)
        begin = starts[owner].astype(np.int64)
        size = starts[owner + 1].astype(np.int64) - begin
        low, high = part * size // count, (part + 1) * size // count
        chosen = inner[_ranges(begin + low, high - low)]
        order[at : at + len(chosen)] = chosen
        at += len(chosen)
    return order


def _array(rows: int, folder: Path) -> Array:
    """A mapped file without a name, uint32 (rows,)."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, np.uint32, "w+", shape=(rows,))


def _ranges(first: Array, length: Array) -> Array:
    """The numbers from each first one on, so many, one behind the other."""
    ends = np.cumsum(length)
    return np.arange(int(ends[-1]), dtype=np.int64) + np.repeat(first - (ends - length), length)


def _mixed(numbers: Array, seed: int) -> Array:
    """Random numbers by number and seed (splitmix64, Steele et al. 2014)."""
    start = np.uint64((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & (2**64 - 1))
    with np.errstate(over="ignore"):
        mixed = numbers.astype(np.uint64) + start
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
