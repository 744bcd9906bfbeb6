"""Names of shards, and fsspec's file systems that read them."""

from __future__ import annotations

import os
import re
from typing import Any

from lockadapt.data.problems import quote
from lockadapt.errors import DataError, LockadaptError, SafetyError, memory_ran_out

PROTOCOLS = (
    *("file", "local", "memory", "http", "https", "hf", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"),
    *("hdfs", "webhdfs", "oss", "sftp", "ssh", "smb", "ftp"),
)
"""Of fsspec: those that read bytes and do nothing else."""

State = tuple[int, str]
"""Size of a file in bytes, and what else tells one state of it from another."""

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_FILES = 1_000_000


def named_files(path: str, suffixes: tuple[str, ...]) -> tuple[str, ...]:
    """The files that a path names, in the order of their names.

    Args:
        path: a file, a folder, a pattern (`*`, `{000..015}`), or an fsspec URL of one.
        suffixes: of files in a folder.

    Returns:
        At least one, as fsspec takes them.

    Raises:
        DataError: there is none, or fsspec cannot open it.
        SafetyError: another kind of fsspec URL than those of `PROTOCOLS`.
    """
    with reading(path):
        if (braces := _BRACES.search(path)) is not None:
            first, last = int(braces[1]), int(braces[2])
            if not 0 <= last - first < _MOST_FILES:
                raise DataError(f"{braces[0]} counts no files", where=path, fix="write `{000..015}`")
            width = len(braces[1])
            return tuple(
                file
                for number in range(first, last + 1)
                for file in named_files(
                    f"{path[: braces.start()]}{number:0{width}d}{path[braces.end() :]}", suffixes
                )
            )
        system, plain = filesystem(path)
        if any(mark in plain for mark in "*?["):
            names = sorted(system.glob(plain))
        elif system.isdir(plain):
            names = sorted(file for file in system.find(plain) if file.lower().endswith(suffixes))
        else:
            return (system.unstrip_protocol(plain),)
    if not names:
        raise DataError(f"there is no {' or '.join(suffixes)} file in it", where=path, fix="correct `path`")
    return tuple(system.unstrip_protocol(file) for file in names)


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, of this process, and the path in it.

    Args:
        url: a path, or a URL that a user named.

    Returns:
        Both.

    Raises:
        SafetyError: another kind of URL than those of `PROTOCOLS`.
        DataError: a package for it is missing.
    """
    import fsspec

    protocol, separator, _ = url.partition("://")
    if "::" in url or (separator and protocol not in PROTOCOLS):
        raise SafetyError(
            "such a URL is not opened", where=url, fix="name a plain URL of: " + ", ".join(PROTOCOLS)
        )
    try:
        # An own one for each process: those that talk to a network do not outlive a fork.
        system, path = fsspec.core.url_to_fs(url if separator else os.path.abspath(os.path.expanduser(url)))
    except ImportError as error:
        raise DataError(f"cannot be opened: {error}", where=url, fix="install that package") from error
    return system, path


def state_of(file: str) -> State:
    """The state of a file.

    Args:
        file: as `named_files` gives it.

    Returns:
        See `State`.

    Raises:
        DataError: it is not there, or no regular file.
    """
    with reading(file):
        system, path = filesystem(file)
        told = system.info(path)
        if told.get("type", "file") not in ("file", "link"):
            raise DataError(f"this is a {quote(told['type'])}, not a file", where=file, fix="correct `path`")
        return int(told["size"] or 0), str(system.ukey(path))


class reading:  # noqa: N801 - used as a function is
    """Block that reads a shard: whatever the libraries raise becomes a typed error.

    Args:
        name: of the shard, or of a row in it.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        """No-op."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Raises a DataError for what the block raised, but for typed errors and lack of memory."""
        if error is None or isinstance(error, LockadaptError) or not isinstance(error, Exception):
            return
        if memory_ran_out(error):
            return
        if isinstance(error, FileNotFoundError):
            raise DataError("no such file", where=self.name, fix="correct `path`") from error
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise DataError(
            f"cannot be read: {type(error).__name__}: {first}",
            where=self.name,
            fix="check that it is whole and of this format (a tar must not be packed)",
        ) from error
