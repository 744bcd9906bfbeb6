"""What a stage starts from, kept beside its checkpoints: base and rows are the same when it is resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic_core import from_json

from lockadapt.data.drawn import DrawnRows
from lockadapt.data.encode import Encoded
from lockadapt.errors import VerificationError
from lockadapt.files import write_json
from lockadapt.models.sources import some

START = "start.json"


@dataclass(frozen=True)
class StageStart:
    """Digests (SHA-256, hex) of all that a stage does not train and learns from.

    Attributes:
        frozen: by name of the tensor, of all its bytes. A tower that is not loaded has none.
        rows: by objective, of token ids and labels in order.
    """

    frozen: Mapping[str, str]
    rows: Mapping[str, str]

    def keep_or_compare(self, folder: Path, resume: bool) -> None:
        """Writes the start of a stage, or compares it with the one that was written before an interruption.

        Args:
            folder: of the stage's checkpoints.
            resume: compare, where a start was written.

        Raises:
            VerificationError: a frozen tensor or rows are others than before, and which.
            DiskError: the disk is full.
        """
        file = folder / START
        if not resume or not file.is_file():
            write_json(file, {"frozen": dict(self.frozen), "rows": dict(self.rows)})
            return
        try:
            before = from_json(file.read_bytes())
            frozen, rows = dict(before["frozen"]), dict(before["rows"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise VerificationError(f"is damaged: {error}", where=str(file), fix=_ANEW) from error
        # A tensor that only one of the two loaded cannot be compared.
        changed = [name for name in self.frozen if frozen.get(name, self.frozen[name]) != self.frozen[name]]
        if changed:
            raise VerificationError(
                f"the base is not the one that the run began with: {some(changed)} changed",
                where=str(folder),
                fix="restore the base, or train anew with another --output",
            )
        others = [name for name in self.rows if rows.get(name) != self.rows[name]]
        if others:
            raise VerificationError(
                f"the rows of {some(others)} are not those that the run began with",
                where=str(folder),
                fix="restore the data and the tokenizer, or train anew with another --output",
            )


_ANEW = "train anew with another --output"


def rows_digest(rows: Sequence[Encoded]) -> str:
    """Digests what rows teach: token ids and labels, and how many images each has.

    Args:
        rows: as they were encoded.

    Returns:
        SHA-256, hex. Which images they are is not part of it: these are read as they are needed. Of rows on
        disk it is of the file's bytes, and of what the rows that are looked at teach.
    """
    if isinstance(rows, DrawnRows):
        return rows.digest()
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([len(row.input_ids), len(row.images)]).encode())
        digest.update(row.input_ids.tobytes())
        digest.update(row.labels.tobytes())
        if (rejected := getattr(row, "rejected", None)) is not None:
            digest.update(rejected.input_ids.tobytes())
    return digest.hexdigest()
