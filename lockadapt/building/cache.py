"""Builds the feature cache of a recipe before it is needed, and checks every byte of what is there."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from lockadapt import processes
from lockadapt.architectures import inputs_of
from lockadapt.building.cache_trial import measured_policy, rows_to_try
from lockadapt.building.experiment import build_experiment
from lockadapt.building.model import draft_model
from lockadapt.console import Reporter
from lockadapt.data.ledger import ImageLedger
from lockadapt.data.model_encoder import model_encoder
from lockadapt.data.pixels import pixel_inputs
from lockadapt.data.scan import scan_images
from lockadapt.errors import AssemblyError, RecipeError
from lockadapt.features.inputs import disk_features, why_nothing_is_kept
from lockadapt.features.policy import FeatureSettings, ImagePolicy
from lockadapt.features.towerless import remember_towers
from lockadapt.models.freed_memory import keeping_freed_memory
from lockadapt.models.sources import resolve_dtype
from lockadapt.recipe.schema import Recipe


def cache_recipe(recipe: Recipe, reporter: Reporter) -> dict[str, Any]:
    """Computes the tower outputs of all images of training, validation and test, on disk.

    Started several times at once on one folder, or by a launcher, the processes share the work.

    Args:
        recipe: says which images, tower and folder.
        reporter: told of progress.

    Returns:
        `{"folder", "stored", "images", "computed", "bytes", "seconds", "drift": {"largest", "relative"}}`;
        `computed` by this process, bytes of the whole folder.

    Raises:
        RecipeError: a blind run, which shows one image only, or rows without images.
        LockadaptError: whatever would stop the run.
    """
    if recipe.blind:
        raise RecipeError(
            "a blind run shows one image, the mean", where="blind", fix="cache the seeing recipe"
        )
    # They need not meet: claims on shards divide the work. A model is assembled by each for itself.
    processes.take_gpu()
    if not processes.is_first():
        reporter = Reporter(quiet=True)
    experiment, data, started = build_experiment(recipe), recipe.data, time.perf_counter()
    samples = [
        s
        for part in ("train", "validation", "test")
        for rows in experiment.samples(part, note=reporter.note).values()
        for s in rows
    ]
    scan = scan_images(
        samples,
        data.max_pixels,
        data.on_bad_image,
        data.max_bad_fraction,
        progress=reporter.counted("opening images"),
        ledger=ImageLedger(experiment.features.cache),
    )
    images = {image.key: image for sample in scan.good for image in sample.images}
    if not images:
        raise RecipeError("no row has an image", where="objectives", fix="there is nothing to cache")
    model, processor = draft_model(experiment)
    if torch.cuda.is_available():
        model = model.to("cuda")
    settings: FeatureSettings = replace(experiment.features, choice="disk")
    pixels, projected = pixel_inputs(processor, data.max_pixels), not experiment.projector_trains
    policy = ImagePolicy(settings, data.max_pixels, projector_trains=not projected)
    encoder = model_encoder(model, processor, data.max_length, data.allow_special_tokens)
    tried = encoder.encode(rows_to_try(scan.good)).encoded if inputs_of(processor).stock else []
    policy = measured_policy(policy, model, processor, tried)
    if (reason := why_nothing_is_kept(model, pixels, policy, [s.images for s in scan.good])) is not None:
        raise AssemblyError(reason, where="data.features", fix="use none")
    disk = disk_features(model, pixels, settings, reporter.note, projected=projected, thorough=True)
    reporter.note(f"{len(images):,} images, cache in {disk.folder.path}")
    with keeping_freed_memory():
        computed = disk.fill(images.values(), reporter.counted("shards"))
    start = Path(recipe.model.vlm).expanduser() if recipe.model.vlm else None
    processes.first(lambda: remember_towers(start, resolve_dtype(recipe.model.dtype), model, [disk]))
    drift = disk.folder.drift()
    assert drift is not None
    if data.features != "disk":
        reporter.note(f"data.features is {data.features}: train with data.features=disk to use the cache")
    return {
        "folder": str(disk.folder.path),
        "stored": settings.stored,
        "images": len(disk.content(images.values())),
        "computed": computed,
        "bytes": sum(file.stat().st_size for file in disk.folder.path.iterdir()),
        "seconds": round(time.perf_counter() - started, 2),
        "drift": asdict(drift),
    }
