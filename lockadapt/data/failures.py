"""Errors of rows that are met while a batch is made: they name the row, and come whole out of a worker."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import get_worker_info

from lockadapt.data.encode import Encoded
from lockadapt.errors import LockadaptError

FAILURE = "failure"
"""In place of a batch that a worker could not make: the error."""


def carrying_failures(collate: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """Lets a worker, which would lose what an error says beside its message, give it under `FAILURE`.

    Args:
        collate: makes a batch; an error in the place of items is passed on.

    Returns:
        The same; its batches are for `raise_failure`.
    """

    def collated(items: Any) -> dict[str, Any]:
        if isinstance(items, LockadaptError):
            return {FAILURE: items}
        try:
            return collate(items)
        except LockadaptError as error:
            if get_worker_info() is None:
                raise
            return {FAILURE: error}

    return collated


def raise_failure(batches: Sequence[Mapping[str, Any]]) -> None:
    """Raises what kept a worker from making one of these batches.

    Args:
        batches: as they come from the data loader.

    Raises:
        LockadaptError: the first of them.
    """
    for batch in batches:
        if FAILURE in batch:
            raise batch[FAILURE]


@contextlib.contextmanager
def naming_rows(rows: Sequence[Encoded]) -> Iterator[None]:
    """Names the row of an image that cannot be opened within the block.

    Args:
        rows: whose images are opened.

    Yields:
        Nothing.

    Raises:
        LockadaptError: as it was raised, with the row as its place.
    """
    try:
        yield
    except LockadaptError as error:
        for row in rows:
            if any(error.where in (image.key, str(image.path)) for image in row.images):
                raise type(error)(error.message, where=row.sample.where, fix=error.fix) from error
        raise
