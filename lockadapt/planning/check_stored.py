"""Checks rows that are not in memory: each is read, its images are opened, it is encoded, and let go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from lockadapt.building.experiment import Experiment
from lockadapt.building.samples import told_source
from lockadapt.building.streams import is_streamed, open_stream
from lockadapt.building.tables import build_tables
from lockadapt.console import Reporter
from lockadapt.data.encode import EncodeReport
from lockadapt.data.problems import MOST_PROBLEMS, ROW_ERRORS, Problems, merged
from lockadapt.data.sample import Sample
from lockadapt.data.scan import image_errors
from lockadapt.data.stored import StoredRows
from lockadapt.data.stream import StreamRows
from lockadapt.data.table import Table
from lockadapt.errors import DataError, SafetyError

LOOKED_AT = 256
"""Rows whose images are opened before a model is loaded."""
_AT_ONCE, _BYTES = 256, 64 * 1024**2
"""Rows that are in memory at a time, and the bytes of their images."""


OnDisk = dict[str, dict[int, Table | StreamRows]]
"""By objective, and by position of their source."""


def open_on_disk(experiment: Experiment, part: str, note: Callable[[str], None]) -> OnDisk:
    """Opens the rows of a part of the data that are not read into memory: streamed ones, and large tables.

    Looks at some rows and images, so mistakes show early.

    Args:
        experiment: of the recipe.
        part: `train`, `validation` or `test`.
        note: is told what is left out of the rows that are looked at.

    Returns:
        Its rows.

    Raises:
        RecipeError, DiskError: as `build_tables`.
        DataError, SafetyError: as `OnDiskCheck.run`.
    """
    opened: OnDisk = {}
    tables = build_tables(experiment, note) if part == "train" else {}
    for name, objective in experiment.recipe.objectives.items():
        if name in tables:
            opened[name] = {number: _checked(rows) for number, rows in enumerate(tables[name].parts)}
            continue
        for number, section in enumerate(objective.sources(part)):
            if is_streamed(section):
                told = told_source(experiment.recipe, name, part, note, number)
                opened.setdefault(name, {})[number] = open_stream(experiment.recipe, section, told)
    for rows in (rows for sources in opened.values() for rows in sources.values()):
        errors = image_errors(rows.few[:LOOKED_AT], experiment.data.max_pixels)
        if errors and experiment.data.on_bad_image == "error":
            raise merged(list(errors.values())[:MOST_PROBLEMS], None, "images")
    return opened


def _checked(rows: StoredRows) -> Table | StreamRows:
    assert isinstance(rows, Table | StreamRows)
    return rows


@dataclass(frozen=True)
class OnDiskCheck:
    """Goes through one source of an objective.

    Attributes:
        experiment: of the recipe.
        name: of the objective.
        part: `train`, `validation` or `test`.
        number: of the source.
        rows: of the source.
        reporter: told of progress and of bad images.
    """

    experiment: Experiment
    name: str
    part: str
    number: int
    rows: Table | StreamRows
    reporter: Reporter

    def run(
        self,
        encode: Callable[[list[Sample]], EncodeReport],
        take: Callable[[EncodeReport, list[Sample]], None],
    ) -> int:
        """Reads, opens and encodes all rows.

        Args:
            encode: makes token arrays.
            take: is given what was encoded, and its samples, batch by batch.

        Returns:
            How many images cannot be used and are left out.

        Raises:
            DataError: rows or images cannot be used, and none may be left out, or more than may be.
            SafetyError: a row names a file that it may not, or an image is too large.
        """
        data, errors = self.experiment.data, list[DataError | SafetyError]()
        opened, bad_keys = set[str](), set[str]()
        images = bad = good = 0
        for batch in self._batches():
            refused = image_errors(batch, data.max_pixels, opened)
            shown = {image.key for sample in batch for image in sample.images} - opened
            images, bad = images + len(shown), bad + len(refused)
            if self.rows.listable:
                opened |= shown
                bad_keys |= refused.keys()
            else:  # rows of shards have images of their own, and may be without end
                bad_keys = set(refused)
            errors += list(refused.values())[: MOST_PROBLEMS - len(errors)]
            if data.on_bad_image == "error" and len(errors) >= MOST_PROBLEMS:
                break
            usable = [s for s in batch if not any(image.key in bad_keys for image in s.images)]
            good += len(usable)
            if usable:
                take(encode(usable), usable)
        if errors and data.on_bad_image == "error":
            raise merged(errors, None, "images")
        if bad and (bad > data.max_bad_fraction * images or not good):
            lines = "\n  ".join(f"{error.where}: {error.message}" for error in errors)
            raise DataError(
                f"{bad:,} of {images:,} images cannot be used:\n  {lines}",
                where=str(self.rows.source.path),
                fix=f"fix them, or raise `data.max_bad_fraction` (now {data.max_bad_fraction:g})",
            )
        for error in errors:
            self.reporter.note(f"bad image, its samples are left out: {error.where}: {error.message}")
        return bad

    def _batches(self) -> Iterator[list[Sample]]:
        rows = self.rows
        progress = self.reporter.counted(f"reading {self.name} {self.part}")
        problems = Problems(str(rows.source.path), skip=rows.source.bad_rows)
        batch: list[Sample] = []
        good = size = made = 0
        # Of validation rows no more are ever used.
        most = self.experiment.training.validation_samples if self.part == "validation" else None
        for row in range(len(rows)):
            if most is not None and made >= most:
                break
            try:
                samples = [rows[row]] if rows.listable else rows.samples(row)
            except ROW_ERRORS as error:
                problems.add(error)
                continue
            good, made = good + 1, made + len(samples)
            batch += [replace(sample, source=self.number) for sample in samples] if self.number else samples
            size += sum(len(image.data or b"") for sample in samples for image in sample.images)
            if not rows.listable:  # the bytes of images; names of files cost less to keep than to look for
                rows.forget()
            if len(batch) >= _AT_ONCE or size > _BYTES:
                yield batch
                progress(row + 1, len(rows))
                rows.forget()
                batch, size = [], 0
        problems.finish(good)
        if batch:
            yield batch
            progress(len(rows), len(rows))
