"""Mixes objectives in one stream of micro-batches, drawn by sampling weight, reproducible and resumable."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch.utils.data import Dataset, Sampler, get_worker_info

from lockadapt.data.drawn import DrawnRows
from lockadapt.data.encode import Encoded
from lockadapt.data.pack import groups
from lockadapt.data.sources import NextRow, SourceDraw, SourceRows, mixed, one_by_one
from lockadapt.data.stored import StoredRows
from lockadapt.errors import LockadaptError

_APART = 1_000_000_007
"""Between the seeds of an objective's sources."""


class MixedDataset(Dataset[tuple[str, Encoded]]):
    """The rows of all objectives behind one index; an item is (objective, row)."""

    def __init__(self, rows: Mapping[str, Sequence[Encoded]]) -> None:
        self.rows = dict(rows)
        self.offsets: dict[str, int] = {}
        total = 0
        for name, items in self.rows.items():
            self.offsets[name] = total
            total += len(items)
        self._total = total

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, index: int) -> tuple[str, Encoded]:
        name = self._owner(index)
        return name, self.rows[name][index - self.offsets[name]]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[str, Encoded]] | LockadaptError:
        """A micro-batch, as the data loader asks for it: rows that are encoded when drawn are so at once.

        Args:
            indices: of one objective.

        Returns:
            Objective and row; in a worker the error that kept it from making them, for `carrying_failures`.

        Raises:
            LockadaptError: a row cannot be used.
        """
        name = self._owner(indices[0])
        rows, numbers = self.rows[name], [index - self.offsets[name] for index in indices]
        if not isinstance(rows, DrawnRows):
            return [(name, rows[number]) for number in numbers]
        try:
            return [(name, item) for item in rows.take(numbers)]
        except LockadaptError as error:
            if get_worker_info() is None:
                raise
            return error

    def _owner(self, index: int) -> str:
        return next(n for n in reversed(self.offsets) if index >= self.offsets[n])


@dataclass(frozen=True)
class Draws:
    """How a run draws its micro-batches.

    Attributes:
        sampling_weights: share of micro-batches by objective; only their proportions count.
        sizes: rows in a micro-batch, by objective.
        batches: how many micro-batches there are in all, over all processes.
        processes: that train together; so many micro-batches of one objective follow each other.
        seed: same seed, same order.
        max_samples_per_image: the most rows about the same images that follow each other, by objective; 1
            draws every row by itself.
        sources: how the sources of an objective are drawn, by objective; none: there is one, in random order.
        workers: that read rows, in each process; each takes the rows of one lane (see `StreamRows.drawn`).
    """

    sampling_weights: Mapping[str, float]
    sizes: Mapping[str, int]
    batches: int
    seed: int
    max_samples_per_image: Mapping[str, int]
    processes: int = 1
    sources: Mapping[str, Sequence[SourceDraw]] = field(default_factory=dict)
    workers: int = 0


class MixtureSampler(Sampler[list[int]]):
    """Yields lists of indices into a MixedDataset, one objective a list.

    Which objective comes next is decided by credit (every objective earns its weight, the richest pays
    1), so that after any number of batches each has had its share to within one batch. A choice holds for
    all processes, each of which takes every so many-th list (`OwnBatches`). Within an objective,
    permutations follow each other without a gap, so that every batch is full and every row is seen once
    before any is seen again. Rows about the same images can be drawn together, so that packing finds them in
    one batch.

    Args:
        dataset: what the indices point into.
        draws: how many rows of which objective, and in which order.
    """

    def __init__(self, dataset: MixedDataset, draws: Draws) -> None:
        self.dataset, self.draws = dataset, draws

    def __len__(self) -> int:
        return self.draws.batches

    def __iter__(self) -> Iterator[list[int]]:
        names = [name for name, items in self.dataset.rows.items() if len(items)]
        total = sum(self.draws.sampling_weights[name] for name in names)
        share = {name: self.draws.sampling_weights[name] / total for name in names}
        credit = dict.fromkeys(names, 0.0)
        streams = {name: self._rows(name, number) for number, name in enumerate(names)}
        for number in range(self.draws.batches // self.draws.processes):
            lane = number % max(self.draws.workers, 1)
            for name in names:
                credit[name] += share[name]
            chosen = max(names, key=lambda name: credit[name])
            credit[chosen] -= 1.0
            for _ in range(self.draws.processes):
                yield [streams[chosen](lane) for _ in range(self.draws.sizes[chosen])]

    def _rows(self, name: str, number: int) -> NextRow:
        """What gives the rows of an objective, those of its sources mixed."""
        offset, items = self.dataset.offsets[name], self.dataset.rows[name]
        told = self.draws.sources.get(name, ())
        parts = by_source(items, len(told))
        seed, longest = self.draws.seed * 1_000_003 + number, self.draws.max_samples_per_image[name]
        sources = []
        for source, (draw, own) in enumerate(zip(told or [SourceDraw()] * len(parts), parts, strict=True)):
            own_seed = seed + source * _APART
            if isinstance(own, StoredRows):
                following = own.drawn(draw, longest, own_seed)
                sources.append(SourceRows(draw, len(own), _shifted(following, offset)))
                offset += len(own)
            elif own:
                order = _in_memory(items, own, longest if draw.shuffle else 0, own_seed)
                sources.append(SourceRows(draw, len(own), _shifted(one_by_one(order), offset)))
        return mixed(sources)


def by_source(items: Sequence[Encoded], sources: int) -> Sequence[StoredRows | list[int]]:
    """Rows by source: those that are stored, or positions among rows in memory.

    Args:
        items: of an objective.
        sources: how many it has.

    Returns:
        One entry a source.
    """
    if isinstance(items, DrawnRows):
        return items.table.parts
    if sources <= 1:
        return [list(range(len(items)))]
    own: list[list[int]] = [[] for _ in range(sources)]
    for position, item in enumerate(items):
        own[item.sample.source].append(position)
    return own


class OwnBatches(Sampler[list[int]]):
    """A process's own micro-batches: of each choice of a `MixtureSampler` one.

    Args:
        sampler: draws for all processes.
        rank: of this one.
    """

    def __init__(self, sampler: MixtureSampler, rank: int) -> None:
        self.sampler, self.rank = sampler, rank

    def __len__(self) -> int:
        return self.sampler.draws.batches // self.sampler.draws.processes

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.islice(self.sampler, self.rank, None, self.sampler.draws.processes)


def _shifted(following: NextRow, offset: int) -> NextRow:
    return lambda lane: offset + following(lane)


def _in_memory(items: Sequence[Encoded], own: list[int], longest: int, seed: int) -> Iterator[int]:
    """Positions of rows of one source, epoch by epoch, without end; with `longest` 0 as they are."""
    if not longest:
        yield from itertools.cycle(own)
    generator = torch.Generator().manual_seed(seed)
    same = groups([items[row] for row in own]) if longest > 1 else [[row] for row in range(len(own))]
    while True:
        runs = [run for group in same for run in _runs(group, longest, generator)]
        for chosen in torch.randperm(len(runs), generator=generator).tolist():
            for row in runs[chosen]:
                yield own[row]


def _runs(group: list[int], longest: int, generator: torch.Generator) -> list[list[int]]:
    """A group in new order, cut into runs of nearly equal length, none longer than `longest`."""
    if len(group) == 1:
        return [group]
    count = -(-len(group) // longest)
    order = [group[i] for i in torch.randperm(len(group), generator=generator).tolist()]
    return [order[part::count] for part in range(count)]
