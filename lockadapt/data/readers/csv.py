"""Reads CSV (and tab-separated `.tsv`) with a header line, or without one where `columns` gives positions."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

from lockadapt.data.problems import quote
from lockadapt.data.readers.columns import rules_for
from lockadapt.data.readers.files import read_text
from lockadapt.data.readers.pictures import Pictures
from lockadapt.data.readers.rows import read_rows
from lockadapt.data.readers.source import Source
from lockadapt.data.sample import Sample
from lockadapt.errors import DataError, RecipeError


def read(source: Source) -> Iterator[Sample]:
    """Read the file's samples; image names are relative to its folder.

    Args:
        source: the CSV or TSV file, and its columns.

    Returns:
        An iterator over the samples.

    Raises:
        DataError, SafetyError: as `csv_rows`, and as `read_rows` for what the rows hold.
        RecipeError: as `Source.check`, or `columns` mixes names and positions.
    """
    path = Path(source.path)
    pictures = Pictures(source.image_root(path.parent), source.image_name, source.split)
    return read_rows(source, csv_rows(path, source.columns), rules_for(source, pictures))


def csv_rows(path: Path, columns: Mapping[str, str | int]) -> Generator[tuple[str, Any], None, None]:
    """Read rows with their places: objects by the header's names, or lists where all columns are positions.

    A row with too few or too many values comes out as the `DataError` that it deserves; so does broken
    quoting, which ends the reading, as it spoils all that follows. Blank lines are skipped.

    Args:
        path: the file.
        columns: sample fields and the names or positions of their columns.

    Yields:
        (place, row).

    Raises:
        DataError: as `read_text`, or a column name appears twice.
        RecipeError: `columns` mixes names and positions.
    """
    positions = {isinstance(column, int) for column in columns.values()}
    if len(positions) > 1:
        raise RecipeError(
            "names and positions are mixed",
            where="columns",
            fix="give names (the file has a header line), or positions (it has none)",
        )
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    lines = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        start = lines.line_num + 1
        try:
            values = next(lines, None)
        except csv.Error as error:
            yield f"{path.name}:{start}", _broken(error, f"{path.name}:{start}")
            return
        if values is None:
            return
        where = f"{path.name}:{start}"
        if not values:
            continue
        if True in positions:
            yield where, values
        elif header is None:
            header = _header(values, where)
        elif len(values) != len(header):
            yield where, _ragged(values, header, where)
        else:
            yield where, dict(zip(header, values, strict=True))


def _header(values: list[str], where: str) -> list[str]:
    names = [value.strip() for value in values]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(
            f"the header names {quote(twice[0])} more than once",
            where=where,
            fix="give each column its own name",
        )
    return names


def _broken(error: csv.Error, where: str) -> DataError:
    return DataError(
        f"broken CSV: {error}",
        where=where,
        fix="fix the quotes: double a quote inside quotes, and close every quote",
    )


def _ragged(values: list[str], header: list[str], where: str) -> DataError:
    return DataError(
        f"the row has {len(values)} values, the header {len(header)}",
        where=where,
        fix="fix the row; quote a text that contains a comma",
    )
