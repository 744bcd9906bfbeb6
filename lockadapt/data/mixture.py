"""Mixes objectives in one stream of micro-batches, drawn by ratio, reproducible and resumable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch.utils.data import Dataset, Sampler

from lockadapt.data.encode import Encoded
from lockadapt.data.pack import groups


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
        name = next(n for n in reversed(self.offsets) if index >= self.offsets[n])
        return name, self.rows[name][index - self.offsets[name]]


class MixtureSampler(Sampler[list[int]]):
    """Yields lists of indices into a MixedDataset, one objective a list.

    Which objective comes next is decided by credit (every objective earns its ratio, the richest pays 1), so
    that after any number of batches each has had its share to within one batch. Within an objective,
    permutations follow each other without a gap, so that every batch is full and every row is seen once
    before any is seen again. Rows about the same images can be drawn together, so that packing finds them in
    one batch.

    Args:
        dataset: what the indices point into.
        ratios: share of micro-batches by objective; only their proportions count.
        batch_size: rows in a micro-batch; or one number by objective.
        batches: how many micro-batches there are in all, over all processes.
        seed: same seed, same order.
        together: the most rows about the same images that follow each other; 1 draws every row by itself. Or
            one number by objective.
    """

    def __init__(
        self,
        dataset: MixedDataset,
        ratios: Mapping[str, float],
        batch_size: int | Mapping[str, int],
        batches: int,
        seed: int,
        together: int | Mapping[str, int] = 1,
    ) -> None:
        self.dataset, self.ratios, self.batches, self.seed = dataset, ratios, batches, seed
        names = dataset.rows
        self.sizes = dict.fromkeys(names, batch_size) if isinstance(batch_size, int) else dict(batch_size)
        self.together = dict.fromkeys(names, together) if isinstance(together, int) else dict(together)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        names = [name for name, items in self.dataset.rows.items() if len(items)]
        total = sum(self.ratios[name] for name in names)
        share = {name: self.ratios[name] / total for name in names}
        credit = dict.fromkeys(names, 0.0)
        streams = {name: self._rows(name, number) for number, name in enumerate(names)}
        for _ in range(self.batches):
            for name in names:
                credit[name] += share[name]
            chosen = max(names, key=lambda name: credit[name])
            credit[chosen] -= 1.0
            yield [next(streams[chosen]) for _ in range(self.sizes[chosen])]

    def _rows(self, name: str, number: int) -> Iterator[int]:
        offset, items = self.dataset.offsets[name], self.dataset.rows[name]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        together = self.together[name]
        same = groups(items) if together > 1 else [[row] for row in range(len(items))]
        while True:
            runs = [run for group in same for run in _runs(group, together, generator)]
            for chosen in torch.randperm(len(runs), generator=generator).tolist():
                for row in runs[chosen]:
                    yield offset + row


def _runs(group: list[int], longest: int, generator: torch.Generator) -> list[list[int]]:
    """A group in new order, cut into runs of nearly equal length, none longer than `longest`."""
    if len(group) == 1:
        return [group]
    count = -(-len(group) // longest)
    order = [group[i] for i in torch.randperm(len(group), generator=generator).tolist()]
    return [order[part::count] for part in range(count)]
