"""Resolves a name in a row to a file inside its folder: no URL, no pickle, no symlink out."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lockadapt.data.problems import quote
from lockadapt.data.sample import FileStamp
from lockadapt.errors import DataError, SafetyError

PICKLE_SUFFIXES = frozenset(
    {".pkl", ".pickle", ".dill", ".joblib", ".pt", ".pth", ".ckpt", ".bin", ".npy", ".npz"}
)
"""Files that are, or may hold, pickle: reading one can run code."""

_DRIVE = re.compile(r"[A-Za-z]:")
_PICKLE_START = re.compile(rb"\x80[\x02-\x05]|\x93NUMPY")


def safe_join(root: Path, name: str, where: str) -> Path:
    """The file that `name` means inside `root`. See `DataRoot.join`, which is faster for many names."""
    return DataRoot(root).join(name, where)


class DataRoot:
    """A folder that rows may name files in; folders that were checked once are remembered.

    Args:
        folder: the data root; may itself be a symlink.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(os.path.realpath(folder))
        self._checked: dict[str, str] = {}

    def join(self, name: str, where: str) -> Path:
        """Resolve the file that a row's `name` means, with symlinks inside the root; it need not exist.

        Names are read by the rules of POSIX and of Windows at once: `/` and a backslash both part folders.

        Args:
            name: path relative to the root.
            where: the row, for messages.

        Returns:
            The absolute path.

        Raises:
            SafetyError: absolute path, `..`, drive letter, UNC path, URL, NUL, lone surrogate, or a symlink
                that leaves the root.
            DataError: the name is empty.
        """
        refusal = _refusal(name)
        if refusal:
            raise SafetyError(
                f"{quote(name)} {refusal}",
                where=where,
                fix=f"write the path relative to {self.folder}, or let `images` name the folder that it is "
                "relative to; files from elsewhere must be copied there first",
            )
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        if not parts:
            raise DataError(
                f"{quote(name)} names no file", where=where, fix="write the name of an image file"
            )
        above = "/".join(parts[:-1])
        if above not in self._checked:
            folder = self._inside(self.folder.joinpath(*parts[:-1]), name, where)
            self._checked[above] = str(folder).rstrip(os.sep)
        path = f"{self._checked[above]}{os.sep}{parts[-1]}"
        # Only a symlink can still lead out: everything above the file was resolved and checked.
        return self._inside(Path(path), name, where) if os.path.islink(path) else Path(path)

    @staticmethod
    def stamp(path: Path) -> FileStamp:
        """Record the state of a resolved file; that of one that does not exist is never met again."""
        try:
            status = os.lstat(path)
        except (OSError, ValueError):
            return FileStamp(-1, -1, -1, -1)
        return stamp_of(status)

    def holds(self, path: str | Path) -> Path | None:
        """`path` (absolute) with symlinks resolved if it lies inside this folder, else None."""
        real = Path(os.path.realpath(path))
        return real if real.is_relative_to(self.folder) else None

    def _inside(self, path: Path, name: str, where: str) -> Path:
        real = self.holds(path)
        if real is None:
            raise SafetyError(
                f"{quote(name)} is a symlink out of {self.folder}",
                where=where,
                fix="copy the file into the folder, or let `images` name the folder that it really lies in",
            )
        return real


def stamp_of(status: os.stat_result) -> FileStamp:
    """Return the state of a file from what the system says of it."""
    return FileStamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def refuse_pickle(path: Path) -> None:
    """Refuse a data file that is pickle by its name or by its first bytes.

    Args:
        path: the file; only its name and its first bytes are looked at.

    Raises:
        SafetyError: it is; reading pickle can run any code.
    """
    start = b""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(6)
    name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    if name.suffix.lower() in PICKLE_SUFFIXES or _PICKLE_START.match(start):
        raise SafetyError(
            "this is a pickle file (or may hold one), and reading pickle can run any code",
            where=str(path),
            fix="convert it to JSONL, CSV or parquet with a tool that you trust",
        )


def _refusal(name: str) -> str | None:
    """Why a name can never be a file inside a root, or None."""
    if "://" in name or name.startswith("data:"):
        return "is a URL, and rows may only name local files"
    if "\0" in name:
        return "holds a NUL character"
    if not name.isascii():
        try:
            name.encode()
        except UnicodeEncodeError:
            return "holds a lone surrogate, which no file name can"
    if name.startswith(("\\\\", "//")):
        return "is a UNC path"
    if name.startswith(("/", "\\")):
        return "is an absolute path"
    if ":" in name or ".." in name:
        parts = name.replace("\\", "/").split("/")
        # Windows drops trailing dots and blanks of a name, so ".. " climbs there just as ".." does.
        if any(part.rstrip(" ").rstrip(".") == "" and part.startswith("..") for part in parts):
            return "climbs out of its folder with `..`"
        if any(_DRIVE.match(part) for part in parts):
            return "holds a drive letter"
    return None
