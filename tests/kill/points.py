"""Runs a command in a fork that kills itself at the n-th change of a file below a folder."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lockadapt.cli import main
from lockadapt.models import proof
from tests.exports.killing_merges import forked

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"}
"""Python's audit events that change files, beside `open` for writing."""


def run_to_its_end(arguments: Sequence[str], folder: Path) -> int:
    """Runs a command line in a fork.

    Args:
        arguments: of `lockadapt`.
        folder: where changes are counted.

    Returns:
        How many there were.

    Raises:
        AssertionError: the command failed.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _run(arguments, folder, 0, writing)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        count = pipe.read()
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"lockadapt {' '.join(arguments)} ended with {os.waitstatus_to_exitcode(status)}"
    return int(count)


def run_and_kill(arguments: Sequence[str], folder: Path, change: int) -> bool:
    """Runs a command line in a fork that kills itself directly before a change.

    Args:
        arguments: of `lockadapt`.
        folder: where changes are counted, from 1.
        change: the one that is not made.

    Returns:
        Whether it was killed; it may make fewer changes than before.
    """
    child = os.fork()
    if child == 0:
        _run(arguments, folder, change, None)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), f"lockadapt {' '.join(arguments)} ended with {code}"
    return code != 0


def _run(arguments: Sequence[str], folder: Path, change: int, pipe: int | None) -> None:
    """The child, which never returns."""
    count, below, own = 0, str(folder), os.getpid()

    def watch(event: str, values: tuple[Any, ...]) -> None:
        nonlocal count
        if os.getpid() != own or not _changes(event, values, below):
            return
        count += 1
        if count == change:
            os.kill(own, signal.SIGKILL)

    code = 1
    try:
        log = os.open(f"{below}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for stream in (1, 2):
            os.dup2(log, stream)
        proof.run_python = forked
        sys.argv[:] = ["lockadapt", *arguments]
        sys.addaudithook(watch)
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        if pipe is not None:
            os.write(pipe, str(count).encode())
    finally:
        os._exit(code)


def _changes(event: str, values: tuple[Any, ...], below: str) -> bool:
    if event == "open":
        path, mode, flags = values
        writes = any(letter in (mode or "") for letter in "wax+") or bool(
            (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        return writes and isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(below)
    if event not in CHANGES:
        return False
    return any(
        isinstance(value, (str, bytes, os.PathLike)) and os.fsdecode(value).startswith(below)
        for value in values
    )
