"""Data sets of the Hub as shards: the files of one commit, read where they lie."""

from __future__ import annotations

import re
from typing import Any

from lockadapt.data.readers.source import did_you_mean
from lockadapt.errors import DataError, LockadaptError, SafetyError, memory_ran_out

SUFFIXES = {"parquet": ".parquet", "webdataset": ".tar"}
"""Of the shards of a format, as builders of `datasets` are called, too."""

_HUB_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")


def commit_of(name: str) -> str:
    """The commit that a Hub id means now; asks the Hub.

    Args:
        name: `name` or `owner/name`.

    Returns:
        40 hexadecimal digits.

    Raises:
        DataError: there is no such data set, or the Hub cannot be reached.
    """
    import huggingface_hub

    _refuse_unreachable(name)
    try:
        commit: str = huggingface_hub.HfApi().dataset_info(name).sha or ""
    except Exception as error:  # as below
        raise _unreadable(name, error) from error
    return commit


def files_of(name: str, split: str | None, revision: str | None) -> tuple[str, tuple[str, ...]]:
    """The shards of a data set of the Hub, as `datasets` finds them; asks the Hub.

    Args:
        name: `name` or `owner/name`.
        split: of the data set; None: the only one.
        revision: a commit; None: the newest.

    Returns:
        Their format, and `hf://` URLs that name the commit.

    Raises:
        DataError: there is no such data set or split, its rows are in no shards, or the Hub cannot be
            reached.
        SafetyError: `datasets` would run or unpack what it downloads.
    """
    _refuse_unreachable(name)
    kind, by_split = _listed(name, revision)
    if kind not in SUFFIXES:
        raise DataError(
            f"`datasets` reads it with its builder {kind!r}, and only parquet files and WebDataset tars are "
            "streamed",
            where=name,
            fix="leave `streaming` out, or name a data set of such files",
        )
    if split is None and len(by_split) != 1:
        raise DataError(
            f"there are {len(by_split)} splits",
            where=name,
            fix="choose `split`, one of: " + ", ".join(by_split),
        )
    wanted = next(iter(by_split)) if split is None else split
    if wanted not in by_split:
        raise DataError(f"there is no split {wanted!r}", where=name, fix=did_you_mean(wanted, by_split))
    files = tuple(file for file in by_split[wanted] if file.lower().endswith(SUFFIXES[kind]))
    if not files:
        raise DataError(f"the split {wanted} has no {SUFFIXES[kind]} file", where=name, fix="leave it out")
    other = next((file for file in files if not file.startswith("hf://datasets/")), None)
    if other is not None:
        raise SafetyError(
            "it names a file that is not on the Hub",
            where=other,
            fix="name that file as `path`, if you trust it",
        )
    return kind, files


def _listed(name: str, revision: str | None) -> tuple[str, dict[str, list[str]]]:
    """Builder and files by split, as `datasets` makes them of a repository's names and card."""
    import datasets

    try:
        builder: Any = datasets.load_dataset_builder(name, revision=revision)
        kind = type(builder).__module__.rpartition(".")[2]
        files = builder.config.data_files or {}
    except LockadaptError:
        raise
    except Exception as error:  # `datasets` raises whatever its parsers and the network raise
        raise _unreadable(name, error) from error
    return kind, {str(split): [str(file) for file in listed] for split, listed in files.items()}


def _refuse_unreachable(name: str) -> None:
    from lockadapt.models.hub import hub_is_reachable  # its package imports torch

    if not _HUB_ID.fullmatch(name):
        raise DataError(
            "is no Hub id, and only those are streamed with `format: datasets`",
            where=name,
            fix="name files by `format: parquet` or `format: webdataset`",
        )
    if not hub_is_reachable():
        raise DataError("the Hub cannot be reached", where=name, fix="connect and try again")


def _unreadable(name: str, error: Exception) -> Exception:
    if memory_ran_out(error):
        return error
    first = (str(error).strip().splitlines() or [""])[0][:200]
    return DataError(
        f"cannot be opened on the Hub: {type(error).__name__}: {first}",
        where=name,
        fix="check the spelling, the connection and (for private data) the login",
    )
