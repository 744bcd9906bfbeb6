"""Reads an image folder with `metadata.jsonl` or `metadata.csv`, as `datasets`' imagefolder does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lockadapt.data.readers.columns import rules_for
from lockadapt.data.readers.csv import csv_rows
from lockadapt.data.readers.files import read_rows as json_rows
from lockadapt.data.readers.pictures import Pictures
from lockadapt.data.readers.rows import read_rows
from lockadapt.data.readers.source import Source
from lockadapt.data.sample import Sample
from lockadapt.errors import DataError


def read(source: Source) -> Iterator[Sample]:
    """Read the samples of the folder, or of its subfolder `split`; `file_name` names the images.

    Args:
        source: the folder, and its columns.

    Returns:
        An iterator over the samples.

    Raises:
        DataError, SafetyError: no metadata file, or two; and as the JSONL and CSV readers.
        RecipeError: as `Source.check`.
    """
    folder = Path(source.path)
    if source.split is not None:
        folder /= source.split
    metadata = _metadata(folder)
    pictures = Pictures(source.image_root(folder), source.image_name, source.split)
    own = {} if "images" in source.columns else {"image": "file_name"}
    rules = rules_for(source, pictures, own)
    rows = json_rows(metadata) if metadata.suffix == ".jsonl" else csv_rows(metadata, rules.columns)
    return read_rows(source, rows, rules)


def _metadata(folder: Path) -> Path:
    if not folder.is_dir():
        raise DataError("no such folder", where=str(folder), fix="correct `path` (and `split`)")
    files = [folder / name for name in ("metadata.jsonl", "metadata.csv") if (folder / name).exists()]
    if len(files) != 1:
        raise DataError(
            "the folder has both metadata.jsonl and metadata.csv"
            if files
            else "the folder has neither metadata.jsonl nor metadata.csv",
            where=str(folder),
            fix="keep one of them, with a row for each image and its name in the column file_name",
        )
    return files[0]
