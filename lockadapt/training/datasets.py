"""Whatever a user hands the trainer as rows -> encoded samples by objective, and the images that they use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lockadapt.data.drawn import DrawnRows
from lockadapt.data.encode import Encoded, Encoder, EncodeReport
from lockadapt.data.readers.rows import row_to_samples
from lockadapt.data.readers.source import Source
from lockadapt.data.sample import Sample
from lockadapt.errors import DataError
from lockadapt.objectives import Objective


def encoded_rows(
    dataset: Any, objectives: Mapping[str, Objective], encoder: Encoder
) -> tuple[dict[str, Any], dict[str, EncodeReport]]:
    """Encodes a data set, or one for each objective.

    Args:
        dataset: rows, samples, or either by objective; None: none.
        objectives: by name.
        encoder: of the model's processor.

    Returns:
        Encoded rows, and reports of those that were encoded, by objective.

    Raises:
        DataError: rows of an unknown shape, rows for an objective that is not there, or several objectives
            and one set.
    """
    if dataset is None:
        return {}, {}
    if not isinstance(dataset, Mapping):
        if len(objectives) != 1:
            raise DataError(
                "one data set for several objectives", fix="pass a mapping from objective names to rows"
            )
        dataset = {next(iter(objectives)): dataset}
    rows: dict[str, Any] = {}
    reports: dict[str, EncodeReport] = {}
    for name, items in dataset.items():
        if name not in objectives:
            raise DataError(
                f"rows for {name!r}, which is no objective", fix=f"use one of {sorted(objectives)}"
            )
        if isinstance(items, DrawnRows):
            rows[name] = items
            continue
        if len(items) and isinstance(items[0], Encoded):
            rows[name] = list(items)
            continue
        reports[name] = objectives[name].encode(encoder, _samples(items, objectives[name]))
        rows[name] = reports[name].encoded
    return rows, reports


def _samples(items: Any, objective: Objective) -> list[Sample]:
    if len(items) and isinstance(items[0], Sample):
        return list(items)
    samples: list[Sample] = []
    for number in range(len(items)):
        where = f"row {number}"
        source = Source(where, objective.rows, images=".", boxes=objective.box_rules)
        samples += row_to_samples(items[number], source, where)
    return samples
