"""Numbered claims, by which processes that share a folder divide work; a claim ends with its process."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from lockadapt.errors import DiskError


class Claims:
    """Numbered POSIX record locks on one empty file. A killed process holds none.

    `filelock` locks whole files: it would need a file for each of a cache's thousands of shards, and waits by
    polling.

    Such locks belong to a process, not to an object: open the file once at a time in a process.

    Args:
        path: the lock file; made if it is not there.

    Raises:
        DiskError: the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise DiskError(
                f"cannot be written: {error.strerror}", where=str(path), fix="choose another folder"
            ) from error

    def take(self, number: int, wait: bool = False) -> bool:
        """Claims a number; False if another process has it and `wait` is not asked for."""
        import fcntl

        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, number)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            raise DiskError(
                f"cannot be locked: {error.strerror}",
                where=str(self.path),
                fix="use a file system with locks, such as a local disk",
            ) from error
        return True

    def leave(self, number: int) -> None:
        """Gives a number back."""
        import fcntl

        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)

    def __enter__(self) -> Claims:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)
