"""Samples of any reader as JSON lines of our own, written once, so that they can stay on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lockadapt.data.line_index import Lines
from lockadapt.data.paths import DataRoot
from lockadapt.data.readers.files import parsed_line
from lockadapt.data.readers.source import Source
from lockadapt.data.sample import ImageRef, Sample, Turn
from lockadapt.errors import RecipeError
from lockadapt.files import new_folder, write_json

VERSION = 1
_ROWS, _ABOUT = "rows.jsonl", "about.json"


class NoWholeFiles(Exception):
    """An image is no whole file (bytes in a row, a frame of a video, a mirror image)."""


@dataclass(frozen=True)
class Spool:
    """Samples as they were written; a file of rows as `Table` takes it.

    Attributes:
        source: that the reader was given.
        folder: where the samples are.
    """

    source: Source
    folder: Path

    @property
    def lines(self) -> Lines:
        """The file, whose rows are grouped by their images."""
        return Lines.of(self.folder / _ROWS, None if self.source.kind == "text" else "image", None)

    @property
    def rows(self) -> int:
        """How many samples there are."""
        return int(json.loads((self.folder / _ABOUT).read_text(encoding="utf-8"))["rows"])

    def where(self, line: bytes, number: int) -> str:
        """The place of a sample in the file that the reader read."""
        return str(parsed_line(line, f"{self.folder.name}:{number}")["where"])

    def samples(self, line: bytes, number: int) -> list[Sample]:
        """The sample of a line. Its files are looked at anew, so that none can be put in their place."""
        return [_sample(parsed_line(line, f"{self.folder.name}:{number}"))]

    def forget(self) -> None:
        """No-op."""


def open_spool(source: Source, read: Callable[[], Iterable[Sample]], few: int, cache: Path) -> Spool:
    """Opens the samples of a source, or reads and writes them.

    Args:
        source: whose `path` is a file.
        read: reads its samples.
        few: up to so many are counted, and not kept.
        cache: the folder where samples are kept.

    Returns:
        The samples; without a file where there are few.

    Raises:
        NoWholeFiles: an image is no whole file.
        LockadaptError: as the reader.
    """
    folder = cache.expanduser() / f"samples-{_fingerprint(source)}"
    if not (folder / _ABOUT).is_file():
        try:
            with new_folder(folder, what="samples") as temporary:
                _write(read(), few, temporary)
        except RecipeError:
            if not (folder / _ABOUT).is_file():  # else another process was faster
                raise
    return Spool(source, folder)


def _write(samples: Iterable[Sample], few: int, folder: Path) -> None:
    rows = 0
    with open(folder / _ROWS, "w", encoding="utf-8") as file:
        for sample in samples:
            file.write(_line(sample))
            rows += 1
    if rows <= few:
        (folder / _ROWS).unlink()
    write_json(folder / _ABOUT, {"rows": rows})


def _line(sample: Sample) -> str:
    paths = []
    for image in sample.images:
        if image.path is None or image.mirrored or image.moment is not None:
            raise NoWholeFiles
        paths.append(str(image.path))
    values = {
        "image": "|".join(paths) or None,
        "images": paths,
        "turns": [[turn.role, turn.text, turn.images, turn.places] for turn in sample.turns],
        "where": sample.where,
        "references": sample.references,
        "answer_type": sample.answer_type,
        "sample_id": sample.sample_id,
        "boxes": sample.boxes,
        "negatives": sample.negatives,
        "rejected": sample.rejected,
    }
    return json.dumps(values) + "\n"


def _sample(values: dict[str, Any]) -> Sample:
    paths = [Path(path) for path in values["images"]]
    return Sample(
        tuple(ImageRef(path.as_posix(), path, stamp=DataRoot.stamp(path)) for path in paths),
        tuple(Turn(role, text, images, tuple(places)) for role, text, images, places in values["turns"]),
        values["where"],
        tuple(values["references"]),
        values["answer_type"],
        values["sample_id"],
        tuple(tuple(box) for box in values["boxes"]),
        tuple(values["negatives"]),
        values["rejected"],
    )


def _fingerprint(source: Source) -> str:
    """Of the files that a source names, by path, size and time of change, and of all that it says of them."""
    files = []
    for path in (source.path, source.annotations):
        if path is not None:
            status = os.stat(path)
            files.append([os.path.realpath(path), status.st_size, status.st_mtime_ns])
    images = None if source.images is None else os.path.realpath(source.images)
    told = [source.kind, source.split, dict(source.columns), source.image_name, source.limit, source.prompt]
    skipped = None if source.bad_rows is None else source.bad_rows.max_fraction
    rules = [source.expand, skipped, asdict(source.boxes), asdict(source.video)]
    text = json.dumps([VERSION, files, images, told, rules])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
