"""Where a run's images come from: pixels at every step, or tower outputs kept in memory or on disk, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from lockadapt.architectures import layout_of, tower_of
from lockadapt.architectures.base import unwrap_model
from lockadapt.architectures.dual_encoder.embeddings import pooled_image_features
from lockadapt.architectures.fusions import projector_input
from lockadapt.data.encode import Encoded
from lockadapt.data.pixels import FeatureInputs, ImageInputs, PixelInputs, mean_image
from lockadapt.data.sample import ImageRef
from lockadapt.features.folder import FeatureFolder
from lockadapt.features.identity import feature_identity
from lockadapt.features.on_disk import DiskFeatures, FeatureSettings
from lockadapt.training.rows import distinct_images

GPU_BATCH, CPU_BATCH = 64, 8
"""Images that the tower sees at a time. On a CPU small batches stay in its caches and need no fresh memory from the
system: MobileNetV2 at 128 pixels took 1.0 to 1.6 s for 128 images in eights, 4.0 s in batches of 64 (one thread)."""

Note = Callable[[str], None]
Progress = Callable[[int, int], None]


def silent(_: str) -> None:
    """A note to nobody."""


def image_inputs(
    model: nn.Module,
    processor: Any,
    rows: Sequence[Encoded],
    max_pixels: int,
    settings: FeatureSettings,
    *,
    pays: bool = True,
    blind: bool = False,
    note: Note = silent,
    progress: Progress | None = None,
) -> ImageInputs:
    """What gives the images of these rows, chosen by `settings`; `note` is told which and why.

    Args:
        pays: whether images are used more than once on average; `auto` keeps nothing if not.
        blind: every image is replaced by the mean of the rows' images.

    Raises:
        DiskError: features shall be kept on disk and do not fit.
    """
    images = distinct_images(rows)
    replacement = mean_image(images.values(), max_pixels, image_side(processor)) if blind and images else None
    pixels = PixelInputs(processor.image_processor, max_pixels, replacement)
    if not images or settings.choice == "none":
        note("images: pixels at every step" if images else "no images")
        return pixels
    if settings.choice == "auto" and not pays:
        note("images: pixels at every step, as each is used once only")
        return pixels
    if settings.choice == "disk":
        return _filled(disk_features(model, processor, pixels, settings, note), images, note, progress)
    base = unwrap_model(model)
    kept = FeatureInputs(pixels, lambda values: tower_outputs(base, values), tower_batch(base))
    # Not kept: images that go through the tower in the same batches as for the disk have the same features to the bit.
    probe = kept.tower(pixels([next(iter(images.values()))])["pixel_values"])
    size = probe.nbytes * (1 if blind else len(images))
    if settings.choice == "memory" or size <= settings.memory_gib * 2**30:
        kept.fill(images.values(), progress)
        note(f"images: tower outputs kept in memory, {size / 2**30:.3g} GiB")
        return kept
    why = f"{size / 2**30:.3g} GiB of tower outputs are more than feature_memory_gib allows"
    if settings.disk_gib > 0:
        disk = disk_features(model, processor, pixels, settings, note)
        content = disk.content(images.values())
        refused = disk.folder.refusal(content, disk.layout(next(iter(content.values()))))
        if refused is None:
            note(f"images: {why}")
            return _filled(disk, images, note, progress)
        why = f"{why}; {refused.message}"
    note(f"images: pixels at every step: {why}")
    return pixels


def disk_features(
    model: nn.Module,
    processor: Any,
    pixels: PixelInputs,
    settings: FeatureSettings,
    note: Note,
    *,
    thorough: bool = False,
) -> DiskFeatures:
    """The cache on disk for this model's tower; nothing is computed yet. `thorough`: see `FeatureFolder`."""
    base = unwrap_model(model)
    identity = feature_identity(base, processor.image_processor, settings.stored)
    folder = FeatureFolder(settings.cache, identity, settings.disk_gib, note, thorough=thorough)
    return DiskFeatures(
        pixels, lambda values: tower_outputs(base, values), folder, settings.workers, tower_batch(base)
    )


def tower_outputs(model: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """Projector inputs (images, tokens, channels) for pixel values on any device, without gradient.

    Of a dual encoder, what its projection gets: (images, 1, channels).
    """
    tower = tower_of(model)
    tower.eval()
    reference = next(tower.parameters())
    values = pixel_values.to(reference.device, reference.dtype)
    return (
        projector_input(model, values) if layout_of(model).projector else pooled_image_features(model, values)
    )


def tower_batch(model: nn.Module) -> int:
    """How many images the tower of a model should see at a time."""
    device = next(tower_of(model).parameters()).device
    return CPU_BATCH if device.type == "cpu" else GPU_BATCH


def image_side(processor: Any) -> int:
    """Side of the square that the tower sees, in pixels."""
    from PIL import Image

    values = processor.image_processor(images=[Image.new("RGB", (8, 8))], return_tensors="pt")["pixel_values"]
    return int(values.shape[-1])


def _filled(
    disk: DiskFeatures, images: dict[str, ImageRef], note: Note, progress: Progress | None
) -> DiskFeatures:
    built = disk.fill(images.values(), progress)
    drift = disk.folder.drift()
    assert drift is not None
    note(
        f"images: tower outputs on disk in {disk.folder.path} ({built:,} computed, the others were there); "
        f"stored as {disk.folder.identity['stored']}: largest difference {drift.largest:.2g}, "
        f"relative {drift.relative:.2g}"
    )
    return disk
