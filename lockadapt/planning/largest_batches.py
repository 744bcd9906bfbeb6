"""The micro-batches of a run that need the most memory: most tokens, and most learned ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lockadapt.data.encode import IGNORED, Encoded
from lockadapt.data.mixture import Draws, MixedDataset, MixtureSampler
from lockadapt.data.pack import packed_area

PACKED_CANDIDATES = 32
MOST_BATCHES = 200_000
"""Longer runs are not walked through for their largest micro-batch: their longest rows are taken together."""


def largest_batches(
    rows: Mapping[str, Sequence[Encoded]], draws: Draws, max_row_tokens: int | None
) -> list[tuple[str, list[Encoded]]]:
    """Finds every objective's micro-batches with the most tokens, padding included, and most learned ones.

    Args:
        rows: training rows by objective.
        draws: how the run draws its micro-batches, whose order is followed; with 0 or very many batches the
            longest rows are taken together instead, which no batch exceeds.
        max_row_tokens: longest packed row; None: one row a sample.

    Returns:
        Objective and rows; one entry where both are the same batch.
    """
    largest: list[tuple[str, list[Encoded]]] = []
    drawn = _drawn(rows, draws)
    for name, items in rows.items():
        lengths = [len(item.input_ids) for item in items]
        learned = [int((item.labels != IGNORED).sum()) for item in items]
        batches = drawn.get(name) or [
            sorted(range(len(items)), key=lambda i: (column[i], lengths[i]), reverse=True)[
                : draws.sizes[name]
            ]
            for column in (lengths, learned)
        ]

        def padded(batch: Sequence[int], lengths: list[int] = lengths) -> int:
            return len(batch) * max(lengths[i] for i in batch)

        def labels(batch: Sequence[int], learned: list[int] = learned) -> int:
            return sum(learned[i] for i in batch)

        def area(batch: Sequence[int], items: Sequence[Encoded] = items) -> int:
            return packed_area([items[i] for i in batch], max_row_tokens)

        # Packing takes time, so that only the batches that are largest without it are packed.
        candidates = sorted(batches, key=lambda batch: (padded(batch), labels(batch)), reverse=True)
        widest = max(candidates[:PACKED_CANDIDATES], key=lambda batch: (area(batch), labels(batch)))
        most_learned = max(batches, key=lambda batch: (labels(batch), padded(batch)))
        for batch in [widest] if labels(widest) == labels(most_learned) else [widest, most_learned]:
            largest.append((name, [items[i] for i in batch]))
    return largest


def _drawn(rows: Mapping[str, Sequence[Encoded]], draws: Draws) -> dict[str, list[list[int]]]:
    """The run's micro-batches by objective, as positions in its rows."""
    if not 0 < draws.batches <= MOST_BATCHES:
        return {}
    dataset = MixedDataset(rows)
    starts = sorted((start, name) for name, start in dataset.offsets.items() if len(rows[name]))
    batches: dict[str, list[list[int]]] = {name: [] for name in rows}
    for batch in MixtureSampler(dataset, draws):
        start, name = next((s, n) for s, n in reversed(starts) if batch[0] >= s)
        batches[name].append([index - start for index in batch])
    return batches
