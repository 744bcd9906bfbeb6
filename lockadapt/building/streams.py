"""The rows of a recipe that are streamed from shards: which are, and where they are opened."""

from __future__ import annotations

from pathlib import Path

from lockadapt.data.readers.shards import shard_rules
from lockadapt.data.readers.source import Source
from lockadapt.data.shards import KINDS
from lockadapt.data.shards.files import named_files
from lockadapt.data.shards.hub import files_of
from lockadapt.data.stream import StreamRows
from lockadapt.features.policy import DEFAULT_CACHE
from lockadapt.recipe.schema import Recipe, SourceSection

INDEXES = "rows"
"""The folder of indexes of rows, in that of the feature cache."""


def is_streamed(section: SourceSection) -> bool:
    """Whether the rows of a source are streamed: its shards hold their images."""
    return section.format in KINDS or section.streaming


def open_stream(recipe: Recipe, section: SourceSection, source: Source) -> StreamRows:
    """Opens the rows of a source that is streamed.

    Args:
        recipe: whose source it is.
        section: the source, in the recipe.
        source: the same, as readers are told it.

    Returns:
        Its rows.

    Raises:
        DataError: a shard cannot be read and none may be left out, or there is no row.
        SafetyError: a URL or a shard that is not read.
    """
    path, kind = str(source.path), str(section.format)
    if section.streaming:
        kind, files = files_of(path, section.split, section.revision)
    else:
        files = named_files(path, KINDS[kind].suffixes)
    shards = KINDS[kind](path, files, source.limit, row_cache(recipe), source.bad_rows)
    drawn = source.expand and recipe.data.rows != "memory"
    return StreamRows(shards, source, shard_rules(source), recipe.training.seed, single=drawn)


def row_cache(recipe: Recipe) -> Path:
    """The folder of indexes of rows."""
    return Path(recipe.data.cache or DEFAULT_CACHE).expanduser() / INDEXES
