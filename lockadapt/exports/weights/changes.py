"""An adapter's changes of one matrix, row by row: low-rank sums, DoRA's magnitudes, rows, whole tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from lockadapt.errors import AdapterError


class WeightUpdate(Protocol):
    """One step from a stored matrix to the merged one."""

    @property
    def by_rows(self) -> bool:
        """Whether rows can be changed without the others."""
        ...

    def rows(self, count: int) -> Iterable[tuple[int, int]]:
        """Which rows of `count` it touches, as ascending half-open ranges."""

    def apply(self, matrix: Tensor, first: int) -> None:
        """Changes rows `first`, `first + 1`, … of the matrix in place; `matrix` is float32 (or float64)."""


@dataclass(frozen=True)
class LowRank:
    """Adds `scale * B A` (LoRA, arXiv 2106.09685); with `magnitude` each output then gets that norm.

    That is DoRA (arXiv 2402.09353).

    Attributes:
        a: (rank, in), b: (out, rank); of stacked experts (experts, rank, in) and (experts, out, rank).
        transposed: the stored matrix is (in, out), as GPT-2's Conv1D and embeddings keep theirs.
        magnitude: (out,) or None; None for experts.
    """

    a: Tensor
    b: Tensor
    scale: float
    transposed: bool = False
    magnitude: Tensor | None = None

    @property
    def by_rows(self) -> bool:
        """Whether rows can be changed without the others."""
        return self.magnitude is None or not self.transposed

    def rows(self, count: int) -> Iterable[tuple[int, int]]:
        """All of them."""
        return ((0, count),)

    def expert(self, number: int, first: int, last: int) -> LowRank:
        """The sum on the stored rows `first` to `last` of one expert's matrix."""
        a, b = self.a[number], self.b[number]
        if self.transposed:
            return LowRank(a[:, first:last].contiguous(), b, self.scale, transposed=True)
        return LowRank(a, b[first:last].contiguous(), self.scale)

    def apply(self, matrix: Tensor, first: int) -> None:
        """Adds the product, and with `magnitude` scales the outputs; experts lie one behind the other."""
        if self.a.ndim == 3:
            self._apply_experts(matrix, first)
            return
        a, b = self.a.to(matrix), self.b.to(matrix)
        last = first + matrix.shape[0]
        delta = a[:, first:last].T @ b.T if self.transposed else b[first:last] @ a
        matrix += delta.mul_(self.scale)
        if self.magnitude is not None:
            wanted = self.magnitude.to(matrix)
            if self.transposed:
                matrix *= wanted / torch.linalg.vector_norm(matrix, dim=0)
            else:
                matrix *= (wanted[first:last] / torch.linalg.vector_norm(matrix, dim=1))[:, None]

    def _apply_experts(self, matrix: Tensor, first: int) -> None:
        rows, last = self.a.shape[2] if self.transposed else self.b.shape[1], first + matrix.shape[0]
        for number in range(first // rows, -(-last // rows)):
            begin, end = max(first, number * rows), min(last, (number + 1) * rows)
            own = self.expert(number, begin - number * rows, end - number * rows)
            own.apply(matrix[begin - first : end - first], 0)


@dataclass(frozen=True)
class Rows:
    """Puts trained rows, `values` (rows, columns), at `ids`; a weight below 1 goes part of the way."""

    ids: tuple[int, ...]
    values: Tensor
    weight: float = 1.0

    @property
    def by_rows(self) -> bool:
        """Whether rows can be changed without the others."""
        return True

    def rows(self, count: int) -> Iterable[tuple[int, int]]:
        """The trained ones, each by itself."""
        return [(row, row + 1) for row in sorted(self.ids)]

    def apply(self, matrix: Tensor, first: int) -> None:
        """Puts the trained rows that lie in this part."""
        for row, values in zip(self.ids, self.values, strict=True):
            if first <= row < first + matrix.shape[0]:
                _towards(matrix[row - first], values, self.weight)


@dataclass(frozen=True)
class Whole:
    """Puts a trained tensor, as a matrix (rows, columns), in the stored one's place; weight as in `Rows`."""

    tensor: Tensor
    weight: float = 1.0

    @property
    def by_rows(self) -> bool:
        """Whether rows can be changed without the others."""
        return True

    def rows(self, count: int) -> Iterable[tuple[int, int]]:
        """All of them."""
        return ((0, count),)

    def apply(self, matrix: Tensor, first: int) -> None:
        """Puts this part of the trained tensor."""
        _towards(matrix, self.tensor[first : first + matrix.shape[0]], self.weight)


def blended(changes: Sequence[WeightUpdate]) -> list[WeightUpdate]:
    """Blends the changes that bring values of their own into one, `W + sum of w_i (T_i - W)`.

    One after the other they would depend on their order. Low-rank sums stay, behind.

    Args:
        changes: of one matrix.

    Returns:
        The one, then the low-rank sums.

    Raises:
        AdapterError: weights of several cancel out.
    """
    wholes = [change for change in changes if isinstance(change, Whole)]
    updates: list[WeightUpdate] = []
    if wholes:
        updates.append(Whole(*_mean([(whole.tensor, whole.weight) for whole in wholes])))
    by_row: dict[int, list[tuple[Tensor, float]]] = {}
    for change in changes:
        if isinstance(change, Rows):
            for row, values in zip(change.ids, change.values, strict=True):
                by_row.setdefault(row, []).append((values, change.weight))
    by_weight: dict[float, dict[int, Tensor]] = {}
    for row, goals in sorted(by_row.items()):
        goal, weight = _mean(goals)
        by_weight.setdefault(weight, {})[row] = goal
    updates += [Rows(tuple(rows), torch.stack(list(rows.values())), w) for w, rows in by_weight.items()]
    return updates + [change for change in changes if isinstance(change, LowRank)]


def _mean(goals: Sequence[tuple[Tensor, float]]) -> tuple[Tensor, float]:
    if len(goals) == 1:
        return goals[0]
    total = sum(weight for _, weight in goals)
    if abs(total) < 1e-6:
        raise AdapterError(
            "weights of adapters that bring trained tensors cancel out",
            where="--adapter",
            fix="give weights with another sum",
        )
    mean = sum((tensor.float() * weight for tensor, weight in goals), torch.zeros(()))
    return mean / total, total


def on_device(changes: Sequence[WeightUpdate], device: torch.device) -> tuple[WeightUpdate, ...]:
    """The same, with low-rank matrices on the device; trained rows and tensors are copied piece by piece."""

    def moved(change: WeightUpdate) -> WeightUpdate:
        if not isinstance(change, LowRank):
            return change
        magnitude = change.magnitude if change.magnitude is None else change.magnitude.to(device)
        return replace(change, a=change.a.to(device), b=change.b.to(device), magnitude=magnitude)

    return tuple(moved(change) for change in changes)


def touched(changes: Sequence[WeightUpdate], count: int) -> list[tuple[int, int]]:
    """Rows of `count` that any of these touches, as ascending ranges that do not meet."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(span for change in changes for span in change.rows(count)):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


def _towards(matrix: Tensor, goal: Tensor, weight: float) -> None:
    if weight == 1.0:
        matrix.copy_(goal)
    else:
        matrix += (goal.to(matrix) - matrix).mul_(weight)
