"""Training rows that stay on disk: what is looked at before step 1, and how they are made when drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lockadapt.building.experiment import Experiment
from lockadapt.building.tables import allowed_bad
from lockadapt.console import Reporter
from lockadapt.data.bad_rows import BadRowLog
from lockadapt.data.drawn import DrawnRows, Encode
from lockadapt.data.encode import Encoder, EncodeReport
from lockadapt.data.ledger import ImageLedger
from lockadapt.data.sample import Sample
from lockadapt.data.scan import few_samples, scan_images
from lockadapt.data.stored import StoredRows
from lockadapt.data.table import allowance
from lockadapt.errors import VerificationError
from lockadapt.objectives import Objective

IMAGES_FIRST = 256
"""Images that are opened before step 1 where a bad one is an error."""

LISTED = 50_000
"""With more images `features: auto` keeps nothing of those of rows on disk, as all would be gone through."""


def lists_images(experiment: Experiment, tables: Mapping[str, StoredRows]) -> bool:
    """Whether all images of rows on disk are gone through before step 1, as features are kept of them."""
    choice = experiment.features.choice
    images = sum(table.images for table in tables.values())
    if not all(table.listable for table in tables.values()):
        return False
    return choice in ("memory", "disk") or (choice == "auto" and images <= LISTED)


def look_at(experiment: Experiment, tables: Mapping[str, StoredRows], reporter: Reporter) -> None:
    """Reads some rows of tables; opens images: some where a bad one is an error, else those of these rows.

    All are opened where bad ones are left out and features are kept of all.

    Args:
        experiment: of the recipe.
        tables: by objective; told which of the images are bad.
        reporter: told what was looked at.

    Raises:
        DataError: a row or image cannot be used and none may be left out, or clearly more than may be.
        SafetyError: a row names a file that it may not.
    """
    data, listed = experiment.data, lists_images(experiment, tables)
    for name, table in tables.items():
        reporter.note(
            f"{name}: {len(table):,} rows stay on disk ({table.images:,} images); {len(table.few):,} "
            "are read before step 1, the others when they are drawn"
        )
        if data.on_bad_image == "error":
            few = few_samples(table.few, IMAGES_FIRST, experiment.training.seed)
            scan_images(few, data.max_pixels, "error", 0.0)
            continue
        opened = list(table.one_of_each()) if listed else table.few
        report = scan_images(
            opened,
            data.max_pixels,
            "skip",
            allowance(data.max_bad_fraction, len(opened), len(opened) if listed else len(table)),
            reporter.counted("opening images"),
            ImageLedger(experiment.features.cache),
        )
        table.refuse_images(frozenset(bad.key for bad in report.bad))


def drawn_rows(
    experiment: Experiment, encoder: Encoder, tables: Mapping[str, StoredRows]
) -> dict[str, DrawnRows]:
    """The rows of tables as they are drawn.

    Args:
        experiment: of the recipe.
        encoder: of the model.
        tables: by objective.

    Returns:
        Rows by objective.
    """
    allowed = allowed_bad(experiment)
    opened = allowed.skip_images and not lists_images(experiment, tables)
    return {
        name: DrawnRows(
            table,
            _steady(encoder, experiment.objectives[name]),
            BadRowLog(name, len(table), allowed),
            experiment.data.max_pixels if opened else None,
        )
        for name, table in tables.items()
    }


def _steady(encoder: Encoder, objective: Objective) -> Encode:
    """Encodes samples, where what became of earlier ones never turns out to have been wrong.

    Rows that are drawn cannot be encoded again, as those in memory are.
    """
    begun = False

    def encode(samples: Sequence[Sample]) -> EncodeReport:
        nonlocal begun
        before = _refused(encoder)
        report = objective.encode(encoder, samples)
        if begun and _refused(encoder) > before:
            raise VerificationError(
                "the chat template writes a row otherwise than the first ones of its kind",
                where=samples[0].where,
                fix="let the recipe keep rows in memory (data.rows: memory)",
            )
        begun = True
        return report

    return encode


def _refused(encoder: Encoder) -> int:
    """How often a kind of conversation came out otherwise on the quick way, which pairs do not have."""
    return encoder.quick.refused if hasattr(encoder, "quick") else 0
