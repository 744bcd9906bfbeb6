"""Reads LLaVA / ShareGPT JSON: `conversations` of `from` and `value`, with `<image>` for images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lockadapt.data.readers.columns import RowRules, rules_for
from lockadapt.data.readers.files import read_rows as json_rows
from lockadapt.data.readers.pictures import Pictures
from lockadapt.data.readers.rows import read_rows
from lockadapt.data.readers.source import Source
from lockadapt.data.sample import Sample


def read(source: Source) -> Iterator[Sample]:
    """Read the samples of a `.json` list or a `.jsonl` file; rows without `image` are text only.

    The count of `<image>` markers must be that of the images; they may stand anywhere in a user's text.

    Args:
        source: the file and the image folder.

    Returns:
        An iterator over the samples.

    Raises:
        DataError, SafetyError: as `read_text`, and as `read_rows` for what the rows hold.
        RecipeError: as `Source.check`.
    """
    return read_rows(source, json_rows(Path(source.path)), row_rules(source))


def row_rules(source: Source) -> RowRules:
    """By what a row of the file becomes samples."""
    pictures = Pictures(source.image_root(Path(source.path).parent), source.image_name, source.split)
    return rules_for(source, pictures, {"messages": "conversations"}, marks=True)
