"""Reads LLaVA-RLHF's preferences: a conversation, `output_1`, `output_2` and which of them is preferred."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lockadapt.data.problems import quote
from lockadapt.data.readers.columns import rules_for
from lockadapt.data.readers.files import read_rows as json_rows
from lockadapt.data.readers.pictures import Pictures
from lockadapt.data.readers.rows import read_rows
from lockadapt.data.readers.source import Source
from lockadapt.data.sample import Sample
from lockadapt.errors import DataError

OUTPUTS = ("output_1", "output_2")


def read(source: Source) -> Iterator[Sample]:
    """Read the samples of a `.json` list or a `.jsonl` file of preferences.

    A row has `conversations` as LLaVA's that end with the user, `output_1` and `output_2` (each a message or
    a text), and `preference`, 1 or 2.

    Args:
        source: the file and the image folder.

    Returns:
        An iterator over the samples.

    Raises:
        DataError, SafetyError: as `read_text`, and as `read_rows` for what the rows hold.
        RecipeError: as `Source.check`.

    Source: zhiqings/LLaVA-Human-Preference-10K.
    """
    source.check_fixed("llava-rlhf", "preference")
    path = Path(source.path)
    pictures = Pictures(source.image_root(path.parent), source.image_name, source.split)
    rules = rules_for(source, pictures, {"messages": "conversations"}, marks=True)
    return read_rows(source, ((where, _chosen(row, where)) for where, row in json_rows(path)), rules)


def _chosen(row: Any, where: str) -> Any:
    """The row with the outputs as `chosen` and `rejected`; an error as what it is."""
    if not isinstance(row, dict):
        return row
    preferred = row.get("preference")
    if type(preferred) is not int or preferred not in (1, 2) or not all(name in row for name in OUTPUTS):
        return DataError(
            f"the preference is {quote(preferred)}, or an output is missing",
            where=where,
            fix="give `output_1`, `output_2`, and 1 or 2 as `preference`",
        )
    chosen, rejected = (row[name] for name in (OUTPUTS if preferred == 1 else reversed(OUTPUTS)))
    return {**row, "chosen": _listed(chosen), "rejected": _listed(rejected)}


def _listed(output: Any) -> Any:
    return [output] if isinstance(output, dict) else output
