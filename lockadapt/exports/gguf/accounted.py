"""Compares a file that llama.cpp's converter wrote with the weights that it was given, value by value."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from lockadapt.errors import VerificationError
from lockadapt.models.sources import some

CHUNK = 1 << 24
"""How many values are in memory at once."""
PARTS = (2, 3)
"""Into how many tensors the converter cuts one: images in time, gates, and queries, keys and values."""
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Accounted:
    """What became of the tensors that the converter was given.

    Attributes:
        tensors: how many it was given.
        compared: how many of them are in the file with every value, in one piece or in several; their values
            may have another order, as rotary positions want it, or lie 1 higher, as norms of Gemma do.
        changed: names of the others, whose values the converter computes anew.
        rounded: names of those that the converter keeps in a coarser dtype than they were given in.
        lacking: names of those that the file has no values for: the converter is silent about names that it
            does not know. If there are any, nothing is in `changed`.
    """

    tensors: int
    compared: int
    changed: tuple[str, ...]
    rounded: tuple[str, ...]
    lacking: tuple[str, ...]

    def require_all(self, path: Path) -> None:
        """Refuses a file that lacks a tensor.

        Args:
            path: the GGUF file, for the message.

        Raises:
            VerificationError: it does.
        """
        if self.lacking:
            raise VerificationError(
                f"llama.cpp's converter took {self.compared} of {self.tensors} tensors; its file lacks "
                f"{some(self.lacking)}",
                where=path.name,
                fix="try a newer llama.cpp; if that fails too, please report this",
            )


def account(path: Path, folder: Path, left_out: tuple[str, ...] = ()) -> Accounted:
    """Finds the values of every tensor of a folder in a GGUF file.

    Args:
        path: the GGUF file.
        folder: with the safetensors files that the converter read.
        left_out: parts of names that the converter leaves out by design.

    Returns:
        What became of them.
    """
    from gguf import GGUFReader

    pool: dict[tuple[int, int], list[str]] = defaultdict(list)
    sizes: dict[str, int] = {}
    kinds = set()
    for stored in GGUFReader(path).tensors:
        kinds.add(stored.tensor_type)
        sizes[stored.name] = int(stored.n_elements)
        pool[sizes[stored.name], _sum(_values(stored))].append(stored.name)
    # The finest first: values that fit several are not called rounded.
    rounded = [DTYPES[kind.name] for kind in sorted(kinds) if kind.name in DTYPES]
    taken: set[str] = set()
    given, missing, coarser = 0, {}, []
    for name, tensor in _tensors(folder):
        if any(part in name for part in left_out):
            continue
        given += 1
        kept = next((kept for parts in _ways(tensor) if (kept := _take(parts, rounded, pool, taken))), None)
        if kept is None:
            missing[name] = tensor.numel()
        elif any(_loses(tensor, dtype) for dtype in kept):
            coarser.append(name)
    rest = sum(size for name, size in sizes.items() if name not in taken)
    names = tuple(missing)
    if sum(missing.values()) > rest:
        return Accounted(given, given - len(missing), (), tuple(coarser), names)
    return Accounted(given, given - len(missing), names, tuple(coarser), ())


def _ways(tensor: Tensor) -> Iterator[list[Tensor]]:
    """What the converter may make of a tensor: itself, Gemma's norm, or equal parts along an axis."""
    yield [tensor]
    if tensor.ndim == 1:
        yield [tensor.float() + 1]
    for count in PARTS:
        for axis, size in enumerate(tensor.shape):
            if size % count == 0:
                yield list(tensor.chunk(count, axis))


def _take(
    parts: list[Tensor],
    rounded: list[torch.dtype],
    pool: dict[tuple[int, int], list[str]],
    taken: set[str],
) -> set[torch.dtype]:
    """Takes the tensors of the file with the values of all parts, or none; the dtypes that they are in."""
    names: list[str] = []
    dtypes = set()
    for part in parts:
        for dtype in rounded:
            held = pool.get((part.numel(), _sum(_pieces(part, dtype))), [])
            free = next((name for name in held if name not in taken and name not in names), None)
            if free is not None:
                names.append(free)
                dtypes.add(dtype)
                break
        else:
            return set()
    taken.update(names)
    return dtypes


def _loses(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether values change as they are rounded to a dtype."""
    pieces = (piece.float() for piece in tensor.reshape(-1).split(CHUNK))
    return any(not torch.equal(piece.to(dtype).float(), piece) for piece in pieces)


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - it is no dict
                yield name, weights.get_tensor(name)


def _pieces(tensor: Tensor, dtype: torch.dtype) -> Iterator[np.ndarray]:
    """Values as they are after rounding to a dtype, float32."""
    for piece in tensor.reshape(-1).split(CHUNK):
        yield piece.float().to(dtype).float().numpy()


def _values(stored: Any) -> Iterator[np.ndarray]:
    from gguf.quants import dequantize

    data = stored.data.reshape(-1, stored.data.shape[-1])
    rows = max(1, CHUNK // max(1, data.shape[-1]))
    for begin in range(0, len(data), rows):
        yield dequantize(data[begin : begin + rows], stored.tensor_type).astype(np.float32).reshape(-1)


def _sum(pieces: Iterator[np.ndarray]) -> int:
    """A sum over the hashes (splitmix64) of values, which knows no order."""
    total = 0
    for piece in pieces:
        bits = np.ascontiguousarray(piece).view(np.uint32).astype(np.uint64)
        bits += np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        total += int((bits ^ (bits >> np.uint64(31))).sum(dtype=np.uint64))
    return total & MASK
