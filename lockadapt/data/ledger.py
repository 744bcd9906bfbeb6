"""Keeps of image files, by path, size and time of change, that they could be opened, and their SHA-256."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lockadapt.data.sample import ImageRef

FILE = "images.sqlite"
"""In the folder of the feature cache."""

_AT_ONCE = 500
_WAIT = 30.0
"""Seconds that a process waits for another one that writes."""
_SETTLED = 2_000_000_000
"""Files that changed within so many nanoseconds are not kept."""
_TABLE = (
    "create table if not exists images (path text primary key, size integer, changed_ns integer, "
    "max_pixels integer, sha256 text) without rowid"
)
_KEEP = (
    "insert into images values (?, ?, ?, ?, ?) on conflict (path) do update set "
    # Of a file that changed nothing is known any more.
    "max_pixels = case when size = excluded.size and changed_ns = excluded.changed_ns "
    "then coalesce(excluded.max_pixels, max_pixels) else excluded.max_pixels end, "
    "sha256 = case when size = excluded.size and changed_ns = excluded.changed_ns "
    "then coalesce(excluded.sha256, sha256) else excluded.sha256 end, "
    "size = excluded.size, changed_ns = excluded.changed_ns"
)


@dataclass(frozen=True)
class Known:
    """What is known of a file in the state that it is in.

    Attributes:
        max_pixels: it was decoded whole, and accepted, with this limit; None: it was not.
        sha256: of its bytes, hex; None: they were not hashed.
    """

    max_pixels: int | None = None
    sha256: str | None = None


class ImageLedger:
    """A table on disk that spares a run to open what an earlier one has opened.

    Only files that rows name are in it: no bytes, no frames of videos. It is an aid: where its folder cannot
    be written, or its file is damaged, nothing is known and nothing kept.

    Args:
        folder: where it lies.
        recall: whether it is asked; else every image is opened again, and what is learned is kept.
    """

    def __init__(self, folder: Path, recall: bool = True) -> None:
        self.file, self.recall = folder.expanduser() / FILE, recall

    def known(self, images: Iterable[ImageRef]) -> dict[str, Known]:
        """What is known of images whose files are as they were.

        Args:
            images: may repeat; those that are no whole files are unknown.

        Returns:
            By key of the image; unknown ones are left out.
        """
        wanted = {str(image.path): image for image in images if _is_file(image)}
        paths, known = list(wanted), dict[str, Known]()

        def look(table: sqlite3.Connection) -> None:
            for start in range(0, len(paths), _AT_ONCE):
                part = paths[start : start + _AT_ONCE]
                marks = ", ".join("?" * len(part))
                rows = table.execute(f"select * from images where path in ({marks})", part)
                for path, size, changed, max_pixels, sha256 in rows:
                    stamp = wanted[path].stamp
                    if stamp is not None and (stamp.size, stamp.changed_ns) == (size, changed):
                        known[wanted[path].key] = Known(max_pixels, sha256)

        if self.recall and paths and self.file.is_file():
            self._with_table(look)
        return known

    def keep(self, images: Mapping[str, ImageRef], facts: Mapping[str, Known]) -> None:
        """Adds what was learned of images; what was known of the same state of a file stays.

        Args:
            images: by key.
            facts: by key of the image.
        """
        # A file that changes again within the clock's grain would look unchanged.
        settled = time.time_ns() - _SETTLED
        rows = []
        for key, fact in facts.items():
            stamp = images[key].stamp
            if stamp is not None and _is_file(images[key]) and stamp.changed_ns < settled:
                path = str(images[key].path)
                rows.append((path, stamp.size, stamp.changed_ns, fact.max_pixels, fact.sha256))
        if rows:
            self._with_table(lambda table: table.executemany(_KEEP, rows))

    def _with_table(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """Works on the table in a transaction, where there can be one; a file that stays empty goes again."""
        with contextlib.suppress(OSError, sqlite3.Error, UnicodeError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            try:
                with contextlib.closing(sqlite3.connect(self.file, timeout=_WAIT)) as table, table:
                    table.execute(_TABLE)
                    work(table)
            except sqlite3.Error:
                if self.file.stat().st_size == 0:
                    self.file.unlink()
                    self.file.parent.rmdir()  # where nothing else lies in it


def _is_file(image: ImageRef) -> bool:
    """Whether an image is a whole file, in a state that is known."""
    plain = image.path is not None and image.moment is None and not image.mirrored
    return plain and image.stamp is not None and image.stamp.size >= 0
