"""Decodes every image of a data set once before training, so that bad ones are found early."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from lockadapt.data.images import open_image
from lockadapt.data.ledger import ImageLedger, Known
from lockadapt.data.problems import MOST_PROBLEMS, merged
from lockadapt.data.sample import ImageRef, Sample
from lockadapt.errors import DataError, SafetyError

_AT_ONCE = 512


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be used: its key, the first row that names it, and why."""

    key: str
    where: str
    reason: str


@dataclass(frozen=True)
class ScanReport:
    """The samples whose images are all good, in their order, and the images that are not."""

    good: list[Sample]
    bad: list[BadImage]


def scan_images(
    samples: Sequence[Sample],
    max_pixels: int,
    on_bad: Literal["error", "skip"],
    max_bad_fraction: float,
    progress: Callable[[int, int], None] | None = None,
    ledger: ImageLedger | None = None,
) -> ScanReport:
    """Open every distinct image once, on several threads, and keep none of the pixels.

    Args:
        samples: of one data set; text-only samples are always good.
        max_pixels: as `open_image`.
        on_bad: "error" stops at bad images; "skip" drops the samples that show them.
        max_bad_fraction: with "skip", the largest share of the distinct images that may be bad.
        progress: called on this thread with the images done and their number.
        ledger: spares the opening of files that are as they were when they could be opened; told of others.

    Returns:
        The samples to use, and what was found.

    Raises:
        DataError: with "error", a bad image (up to 20 at once, each with its first row); with "skip", too
            many, or no sample is left.
        SafetyError: instead, with "error", if one of them is refused for its size.
    """
    rows: dict[str, tuple[ImageRef, str]] = {}
    for sample in samples:
        for ref in sample.images:
            rows.setdefault(ref.key, (ref, sample.where))
    errors: dict[str, DataError | SafetyError] = {}
    known = ledger.known(ref for ref, _ in rows.values()) if ledger is not None else {}
    accepted = {key for key, fact in known.items() if (fact.max_pixels or max_pixels + 1) <= max_pixels}
    wanted, done = [row for key, row in rows.items() if key not in accepted], 0
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        for start in range(0, len(wanted), _AT_ONCE):
            batch = wanted[start : start + _AT_ONCE]
            outcomes = pool.map(lambda row: _error(row[0], row[1], max_pixels), batch)
            for (ref, _), error in zip(batch, outcomes, strict=True):
                done += 1
                if error is not None:
                    errors[ref.key] = error
                if progress is not None:
                    progress(done, len(wanted))
            if ledger is not None:
                opened = {ref.key: ref for ref, _ in batch if ref.key not in errors}
                ledger.keep(opened, dict.fromkeys(opened, Known(max_pixels)))
            if on_bad == "error" and len(errors) >= MOST_PROBLEMS:
                break
    if on_bad == "error" and errors:
        raise merged(list(errors.values())[:MOST_PROBLEMS], None, "images")
    bad = [BadImage(key, rows[key][1], error.message) for key, error in errors.items()]
    good = [sample for sample in samples if not any(ref.key in errors for ref in sample.images)]
    if bad and (len(bad) / len(rows) > max_bad_fraction or not good):
        lines = [f"{image.where}: {image.reason}" for image in bad[:MOST_PROBLEMS]]
        raise DataError(
            "\n  ".join([f"{len(bad)} of {len(rows)} images cannot be used:", *lines]),
            fix=f"fix them, or raise `data.max_bad_fraction` (now {max_bad_fraction:g})",
        )
    return ScanReport(good, bad)


def image_errors(
    samples: Sequence[Sample], max_pixels: int, opened: Container[str] = ()
) -> dict[str, DataError | SafetyError]:
    """Opens the images of a few samples, each once, on several threads.

    Args:
        samples: of one data set.
        max_pixels: as `open_image`.
        opened: keys of images that were opened before.

    Returns:
        Why images cannot be used, by key; those that can are left out.
    """
    rows: dict[str, tuple[ImageRef, str]] = {}
    for sample in samples:
        for ref in sample.images:
            if ref.key not in opened:
                rows.setdefault(ref.key, (ref, sample.where))
    if not rows:
        return {}
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        outcomes = pool.map(lambda row: _error(row[0], row[1], max_pixels), rows.values())
        return {key: error for key, error in zip(rows, outcomes, strict=True) if error is not None}


def few_samples(samples: Sequence[Sample], images: int, seed: int) -> list[Sample]:
    """Samples that show some of their images, drawn at random; all of them where there are no more images.

    Args:
        samples: of one data set.
        images: how many distinct ones are wanted.
        seed: same seed, same images.

    Returns:
        For each of the chosen images the first sample that shows it.
    """
    first: dict[str, Sample] = {}
    for sample in samples:
        for ref in sample.images:
            first.setdefault(ref.key, sample)
    if len(first) <= images:
        return list(samples)
    chosen = random.Random(seed).sample(list(first.values()), images)
    return list({id(sample): sample for sample in chosen}.values())


def _error(ref: ImageRef, where: str, max_pixels: int) -> DataError | SafetyError | None:
    try:
        open_image(ref, max_pixels, where)
    except (DataError, SafetyError) as error:
        return error
    return None
