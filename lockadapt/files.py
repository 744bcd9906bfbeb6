"""Writes atomically: a temporary sibling, synced, then renamed, with ordinary permissions."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lockadapt.errors import DiskError, LockadaptError, RecipeError, disk_ran_out


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically. What writers of it that were killed left beside it is removed first.

    Args:
        path: the file, which is replaced.
        text: its content, written as UTF-8.

    Raises:
        DiskError: the disk is full, or the place cannot be written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = _prefix(path)
        for left in path.parent.glob(f"{glob.escape(prefix)}*"):
            _remove_if_abandoned(left)
        handle, name = _locked_file(path.parent, prefix)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
                os.chmod(name, 0o666 & ~_umask())
                os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


def write_bytes(path: Path, data: bytes, *, fix: str) -> None:
    """Write a file atomically over a temporary of a fixed name, so that a killed writer leaves no litter.

    Only for a caller who holds a claim on `path`: two writers would share the temporary.

    Args:
        path: the file, which is replaced.
        data: its content.
        fix: what to do where the place cannot be written.

    Raises:
        DiskError: the disk is full, or the place cannot be written; `fix` says what to do about it.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with disk_errors(path, fix):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def require_new(path: str | Path, *, what: str) -> None:
    """Refuse a path at which something already lies.

    Args:
        path: the path to be written.
        what: what is to be written, for messages.

    Raises:
        RecipeError: it exists and is not an empty folder.
    """
    target = Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RecipeError(
            f"{what} would overwrite {target}, which is not empty", where="--output", fix="name a new folder"
        )


@contextlib.contextmanager
def new_folder(path: str | Path, *, what: str) -> Iterator[Path]:
    """Make a temporary sibling of `path` that becomes `path` only if the block succeeds.

    What writers that were killed left beside it is removed first.

    Args:
        path: the folder to be written.
        what: what is to be written, for messages.

    Yields:
        The temporary folder, which is removed if the block fails.

    Raises:
        RecipeError: `path` exists and is not an empty folder.
        DiskError: the disk is full, or the place cannot be written.
    """
    target = Path(path)
    require_new(target, what=what)
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        prefix = _prefix(target)
        for left in target.parent.glob(f"{glob.escape(prefix)}*"):
            _remove_if_abandoned(left)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=prefix))
        try:
            # The system gives the lock back when this process ends, however it ends.
            with opened(temporary, os.O_RDONLY) as handle:
                _lock(handle)
                yield temporary
                ordinary_permissions(temporary)
                for file in temporary.rglob("*"):
                    sync(file)
                sync(temporary)
                if target.exists():
                    target.rmdir()
                os.replace(temporary, target)
            sync(target.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def remove_folder(folder: Path) -> None:
    """Remove a folder at once: who is killed while its files go leaves nothing that could be taken for it.

    Args:
        folder: the folder; nothing happens where it is none.

    Raises:
        DiskError: it cannot be moved.
    """
    with disk_errors(folder):
        gone = Path(tempfile.mkdtemp(dir=folder.parent, prefix=_prefix(folder)))
        with contextlib.suppress(FileNotFoundError):
            os.rename(folder, gone / folder.name)
    shutil.rmtree(gone, ignore_errors=True)


def clear_abandoned(folder: Path) -> None:
    """Remove what killed writers left anywhere below a folder.

    Only for a caller who holds the folder: safetensors does not lock its temporaries while it writes them.

    Args:
        folder: nothing happens where it is none.
    """
    for path in sorted(folder.rglob(".*"), reverse=True):
        if _is_temporary(path):
            _remove_if_abandoned(path)


def nothing_but_abandoned(folder: Path) -> bool:
    """Whether a folder holds nothing, or only what killed writers left."""
    return all(_is_temporary(path) for path in folder.iterdir())


WRITING = "writing"
"""In the name of a file or folder that is being filled, which is locked by whoever fills it."""
_TEMPORARY = re.compile(rf"\..+\.{WRITING}-[a-z0-9_]+|\.tmp[A-Za-z0-9]{{6}}|\..+\.tmp")
"""Names of temporaries: those of `new_folder` and `write_text`, of safetensors, and of `write_bytes`."""


def _prefix(path: Path) -> str:
    return f".{path.name}.{WRITING}-"


def _is_temporary(path: Path) -> bool:
    return _TEMPORARY.fullmatch(path.name) is not None


def _locked_file(parent: Path, prefix: str) -> tuple[int, str]:
    """A new temporary file, open and locked; another one where somebody removed it before it was locked."""
    while True:
        handle, name = tempfile.mkstemp(dir=parent, prefix=prefix)
        with contextlib.suppress(
            OSError
        ):  # a file system without locks, on which nothing is taken for abandoned
            _lock(handle)
        if os.fstat(handle).st_nlink:
            return handle, name
        os.close(handle)


def _lock(handle: int) -> None:
    """Claims an open file or folder for this process; OSError if another has it."""
    import fcntl

    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove_if_abandoned(path: Path) -> None:
    """Removes what a killed writer left: a file or folder that nobody holds."""
    try:
        with opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as handle:
            _lock(handle)
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
    except OSError:
        return


def ordinary_permissions(folder: Path) -> None:
    """Give files and folders the permissions of the umask; safetensors makes them private."""
    umask = _umask()
    os.chmod(folder, 0o777 & ~umask)
    for path in folder.rglob("*"):
        os.chmod(path, (0o777 if path.is_dir() else 0o666) & ~umask)


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """A file's number, for reading and writing at places; new files get ordinary permissions."""
    handle = os.open(path, flags, 0o666)
    try:
        yield handle
    finally:
        os.close(handle)


def sync(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else _slow_digest(file)
        )


def _slow_digest(file: Any) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


@contextlib.contextmanager
def disk_errors(path: Path, fix: str = "free space, or choose another --output") -> Iterator[None]:
    """Block in which a full disk becomes a DiskError that names the path, whatever library meets it.

    Args:
        path: what is being written.
        fix: what to do about a full disk.

    Yields:
        Nothing.

    Raises:
        DiskError: the disk, a quota or a file-size limit is full, or the place cannot be written.
    """
    try:
        yield
    except LockadaptError:
        raise
    except Exception as error:
        if disk_ran_out(error):
            if temporary := _fuller_temporary_folder(path):
                fix = "free space there, or let TMPDIR name a folder on a larger disk"
                raise DiskError("the disk of temporary files is full", where=temporary, fix=fix) from error
            raise DiskError("the disk is full", where=str(path), fix=fix) from error
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:
            raise DiskError(
                f"cannot be written: {error.strerror}", where=str(path), fix="choose another place"
            ) from error
        raise


def _fuller_temporary_folder(path: Path) -> str | None:
    """The folder of temporary files, if it has a disk of its own that is fuller than the one of a path."""
    with contextlib.suppress(OSError):
        temporary = Path(tempfile.gettempdir())
        parent = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        if temporary.stat().st_dev != parent.stat().st_dev:
            free = shutil.disk_usage(temporary).free
            if free < min(_LITTLE, shutil.disk_usage(parent).free):
                return str(temporary)
    return None


_LITTLE = 64 * 1024**2
"""Free bytes with which a disk may be the one that ran full: what did not fit is not known."""
_UNWRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.EIO, errno.ENOTDIR, errno.ENAMETOOLONG)


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, which is on the disk when this returns.

    Args:
        path: the file, which is replaced.
        tensors: torch tensors by name.
        metadata: texts for the file's header.

    Raises:
        DiskError: the disk is full, or the place cannot be written.
    """
    from safetensors.torch import save_file

    with disk_errors(path):
        # Under a temporary name, `.tmpXXXXXX`, and renamed; but not synced.
        save_file(dict(tensors), path, None if metadata is None else dict(metadata))
        sync(path)
        sync(path.parent)
