"""JSON files that hold several tables of objects with ids, as COCO and VQA v2 do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lockadapt.data.problems import ROW_ERRORS, Problems, quote
from lockadapt.data.readers.source import did_you_mean
from lockadapt.errors import DataError


def table(value: Any, name: str, path: Path) -> list[Any]:
    """Return the list under `name` of a JSON object.

    Args:
        value: a JSON value, unchecked.
        name: the key.
        path: the file, for messages.

    Returns:
        The list, not empty.

    Raises:
        DataError: no object, no such list in it, or an empty one.
    """
    rows = value.get(name) if isinstance(value, dict) else None
    if isinstance(rows, list) and rows:
        return rows
    fix = f"the file must be an object with a list {name!r} that is not empty; is it the right file?"
    if isinstance(value, dict) and name not in value and value:
        fix += f" It has {quote(', '.join(value))}: {did_you_mean(name, value)}"
    raise DataError(f"there is no list {name!r} with rows in it", where=str(path), fix=fix)


def by_id(
    rows: Sequence[Any], key: str, file: str, problems: Problems
) -> dict[int, tuple[str, dict[str, Any]]]:
    """Index rows by their number under `key`, with their places; missing and repeated ones are problems."""
    rows_by_id: dict[int, tuple[str, dict[str, Any]]] = {}
    for index, row in enumerate(rows):
        where = f"{file}[{index}]"
        try:
            number = number_of(row, key, where)
            if number in rows_by_id:
                raise DataError(
                    f"{key} {number} is also that of {rows_by_id[number][0]}",
                    where=where,
                    fix="remove one of them",
                )
            rows_by_id[number] = where, row
        except ROW_ERRORS as error:
            problems.add(error)
    return rows_by_id


def number_of(row: Any, key: str, where: str) -> int:
    """Return the whole number under `key` of a row.

    Args:
        row: a JSON value, unchecked.
        key: the key.
        where: the row's place, for messages.

    Returns:
        The number.

    Raises:
        DataError: the row is no object, or has no such number.
    """
    number = row.get(key) if isinstance(row, dict) else None
    if type(number) is not int:
        raise DataError(
            f"{key} is {quote(number)}, not a whole number"
            if isinstance(row, dict)
            else "the row is no object",
            where=where,
            fix=f"write an object with {key}",
        )
    return number
