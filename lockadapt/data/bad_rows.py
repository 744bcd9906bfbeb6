"""Rows that could not be used when they were drawn: written down, and too many of them are an error."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lockadapt.errors import DataError

FILE = "bad_rows.jsonl"
"""In the run folder, where rows were left out."""

Kind = Literal["row", "image", "length", "shard"]


@dataclass(frozen=True)
class Allowed:
    """What a recipe says of rows that cannot be used.

    Attributes:
        skip_rows, skip_images: whether rows that cannot be used, or whose images cannot, are left out.
        rows, images: the largest shares of all rows that may be left out.
    """

    skip_rows: bool = False
    skip_images: bool = False
    rows: float = 0.0
    images: float = 0.0

    def skips(self, kind: Kind) -> bool:
        """Whether such rows are left out; those that are too long always are."""
        return kind == "length" or (self.skip_images if kind == "image" else self.skip_rows)


class BadRowLog:
    """Notes each row that is left out once, over all processes, workers and resumed runs of a folder.

    Without a folder nothing is written, and only this process is counted.

    Args:
        objective: whose rows they are.
        rows: how many it has.
        allowed: how many may be left out.
    """

    def __init__(self, objective: str, rows: int, allowed: Allowed) -> None:
        self.objective, self.rows, self.allowed = objective, rows, allowed
        self.file: Path | None = None
        self._seen: dict[str, Kind] = {}
        self._read = 0

    def write_into(self, folder: Path) -> None:
        """Writes rows down in a run folder from now on."""
        self.file = folder / FILE

    def add(self, where: str, reason: str, kind: Kind) -> None:
        """Notes a row.

        Args:
            where: its place.
            reason: why it cannot be used.
            kind: what of it.

        Raises:
            DataError: more rows than may be are left out by now.
        """
        if where in self._seen:
            return
        if self.file is not None:
            self._read_others(self.file)
        if where not in self._seen:
            self._seen[where] = kind
            if self.file is not None:
                entry = {"objective": self.objective, "row": where, "kind": kind, "reason": reason}
                line = json.dumps(entry, ensure_ascii=False) + "\n"
                # One write at the end of the file: lines of several processes do not mix.
                handle = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
                try:
                    os.write(handle, line.encode(errors="replace"))
                finally:
                    os.close(handle)
        if kind in ("length", "shard"):  # of shards so many were left out as may be
            return
        count = sum(other == kind for other in self._seen.values())
        limit = self.allowed.rows if kind == "row" else self.allowed.images
        if count > limit * self.rows:
            key = "max_bad_row_fraction" if kind == "row" else "max_bad_fraction"
            raise DataError(
                f"{count:,} of {self.rows:,} rows cannot be used so far, the last for: {reason}",
                where=where,
                fix=f"correct them ({FILE} lists them), or raise `data.{key}` (now {limit:g})",
            )

    def _read_others(self, file: Path) -> None:
        """Takes in what other processes, or the run before it was interrupted, wrote since."""
        if not file.is_file():
            return
        with file.open("rb") as lines:
            lines.seek(self._read)
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                try:
                    entry = json.loads(line)
                    if entry["objective"] == self.objective:
                        self._seen.setdefault(str(entry["row"]), entry["kind"])
                except (ValueError, KeyError, TypeError):
                    continue
