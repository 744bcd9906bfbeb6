"""Image inputs by policy: pixels, tower outputs kept in memory or on disk, or image tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from torch import nn

from lockadapt.architectures import architecture_of, inputs_of
from lockadapt.architectures.base import unwrap_model
from lockadapt.data.encode import Encoded, distinct_images
from lockadapt.data.pixels import (
    Frozen,
    ImageInputs,
    PixelInputs,
    ProcessorInputs,
    mean_image,
    pixel_inputs,
)
from lockadapt.data.sample import ImageRef, Sample
from lockadapt.errors import AssemblyError
from lockadapt.features.folder import FeatureFolder
from lockadapt.features.identity import feature_identity, ragged_identity
from lockadapt.features.image_tokens import ImageTokenInputs, image_token_inputs
from lockadapt.features.in_memory import FeatureInputs
from lockadapt.features.on_disk import DiskFeatures, mean_bytes
from lockadapt.features.policy import FeatureSettings, ImagePolicy, Note, choose_store
from lockadapt.features.tower import image_side, tower_batch, tower_outputs

IMAGE_TOKENS: tuple[Frozen, ...] = ("image_tokens", "crops")
"""What objectives that generate images have of an image."""

BORROWED = "the processor is one of another class, so what it gives an image was not measured"
"""Why nothing is kept where a class without a description of its own has the processor of one that has."""

BLIND_SIDE = 64
"""Side in pixels of the mean image where images have sizes of their own; it is stretched to each."""


def inputs_by_objective(
    model: nn.Module,
    processor: Any,
    frozen: Mapping[str, Frozen],
    rows: Mapping[str, Sequence[Encoded | Sample]],
    policy: ImagePolicy,
    reused: bool = True,
) -> dict[str, ImageInputs]:
    """Makes image inputs by objective; those that use the tower share one, as do those that generate images.

    Args:
        model: a Transformers model, possibly wrapped by PEFT.
        processor: the model's.
        frozen: what each objective needs of an image.
        rows: training and validation rows by objective, or samples that show all of their images.
        policy: how images become inputs.
        reused: as `choose_store` takes it.

    Returns:
        Image inputs by objective, filled with the images of `rows`.

    Raises:
        DiskError: features shall be kept on disk and do not fit.
        AssemblyError: an objective generates images, and the model does not.
    """
    seen = [row for name, items in rows.items() if frozen[name] == "tower" for row in items]
    shared: ImageInputs = PixelInputs(processor.image_processor, policy.max_pixels)
    if seen or inputs_of(processor).stock:
        together = [row.images for row in seen]
        shared = tower_inputs(model, processor, distinct_images(seen), policy, reused, together)
    inputs = dict.fromkeys(frozen, shared)
    for kept in IMAGE_TOKENS:
        names = [name for name, needed in frozen.items() if needed == kept]
        if names:
            images = distinct_images([row for name in names for row in rows.get(name, ())])
            tokens = token_inputs(model, processor, images, policy, crops=kept == "crops")
            inputs.update(dict.fromkeys(names, tokens))
    return inputs


def tower_inputs(
    model: nn.Module,
    processor: Any,
    images: Mapping[str, ImageRef],
    policy: ImagePolicy,
    reused: bool = True,
    together: Sequence[Sequence[ImageRef]] = (),
) -> ImageInputs:
    """Makes what gives these images to a model that sees them through its tower, filled already.

    Args:
        model: a Transformers model, possibly wrapped by PEFT.
        processor: the model's.
        images: by key.
        policy: how they become inputs; `policy.note` is told which and why.
        reused: as `choose_store` takes it.
        together: the images of each row.

    Returns:
        Pixel values at every step, or features kept in memory or on disk.

    Raises:
        DiskError: features shall be kept on disk and do not fit.
    """
    settings, pixels = policy.settings, _pixels(processor, images, policy)
    if not images:
        policy.note("no images")
        return pixels
    base = unwrap_model(model)
    if (reason := why_nothing_is_kept(model, pixels, policy, together)) is not None:
        policy.note(f"images: pixels at every step, as {reason}")
        return pixels
    kept = memory_features(base, pixels, projected=not policy.projector_trains)

    def memory_bytes() -> int:
        # Not kept: images that go through the tower in the same batches as for the disk have the same
        # features to the bit.
        distinct = list({shown.key: shown for shown in map(pixels.shown, images.values())}.values())
        return mean_bytes(pixels, kept.tower, distinct) * len(distinct)

    @cache
    def disk() -> DiskFeatures:
        return disk_features(model, pixels, settings, policy.note, projected=not policy.projector_trains)

    def disk_refusal() -> str | None:
        content = disk().content(images.values())
        refused = disk().folder.refusal(content, disk().layout(list(content.values())))
        return None if refused is None else refused.message

    store, why = choose_store(settings, len(images), reused, memory_bytes, disk_refusal)
    if store == "memory":
        kept.fill(images.values(), policy.progress)
    if why:
        policy.note(f"images: {why}")
    if store == "disk":
        return _filled(disk(), images, policy)
    return kept if store == "memory" else pixels


def token_inputs(
    model: nn.Module,
    processor: Any,
    images: Mapping[str, ImageRef],
    policy: ImagePolicy,
    crops: bool = False,
) -> ImageTokenInputs:
    """Makes image token ids of these images by the image tokenizer inside a Transformers model.

    They are kept in memory, and in the cache where features are kept on disk.

    Args:
        model: a Transformers model, possibly wrapped by PEFT.
        processor: the model's.
        images: by key.
        policy: where they are kept, and how they are opened.
        crops: whether ten crops of each image are tokenised too.

    Returns:
        Image inputs, filled already.

    Raises:
        AssemblyError: the model has no image tokenizer.
    """
    base = unwrap_model(model)
    generation = architecture_of(base).generation
    if generation is None:
        raise AssemblyError(
            f"{type(base).__name__} has no image tokenizer",
            fix="give model.image_tokenizer, or start from a Janus checkpoint",
        )
    settings = policy.settings
    folder = settings.cache.expanduser() if settings.choice == "disk" else None
    tokens = image_token_inputs(
        generation.codec(base), processor.image_processor, policy.max_pixels, folder=folder, crops=crops
    )
    count = tokens.fill(images.values(), policy.progress)
    policy.note(f"images: image tokens of {len(images):,} images kept ({count:,} computed)")
    return tokens


def memory_features(
    model: nn.Module, pixels: PixelInputs | ProcessorInputs, *, projected: bool = False
) -> FeatureInputs:
    """Keeps features of this model's tower in memory; nothing is computed yet.

    Args:
        model: a Transformers model, possibly wrapped by PEFT.
        pixels: how its pictures are preprocessed.
        projected: whether the projector's outputs may be kept, where images have sizes of their own.

    Returns:
        Image inputs.
    """
    base, ragged = unwrap_model(model), isinstance(pixels, ProcessorInputs)
    size = 1 if ragged else tower_batch(base)
    return FeatureInputs(pixels, lambda part: tower_outputs(base, part, projected, ragged), size)


def disk_features(
    model: nn.Module,
    pixels: PixelInputs | ProcessorInputs,
    settings: FeatureSettings,
    note: Note,
    *,
    projected: bool = False,
    thorough: bool = False,
) -> DiskFeatures:
    """The cache on disk for this model's tower; nothing is computed yet.

    Args:
        model: a Transformers model, possibly wrapped by PEFT.
        pixels: how its pictures are preprocessed.
        settings: which folder, and how much of it.
        note: told about damage.
        projected: see `memory_features`.
        thorough: see `FeatureFolder`.

    Returns:
        Image inputs.
    """
    kept = memory_features(model, pixels, projected=projected)
    if isinstance(pixels, ProcessorInputs):
        identity = ragged_identity(model, pixels, settings.stored, projected)
    else:
        identity = feature_identity(unwrap_model(model), pixels.image_processor, settings.stored)
    folder = FeatureFolder(settings.cache, identity, settings.disk_gib, note, thorough=thorough)
    return DiskFeatures(pixels, kept.tower, folder, settings.workers, kept.batch_size)


def _pixels(
    processor: Any, images: Mapping[str, ImageRef], policy: ImagePolicy
) -> PixelInputs | ProcessorInputs:
    """Pixels at every step, of the mean image in a blind run."""
    stock = inputs_of(processor).stock
    replacement = policy.mean if policy.blind else None
    if policy.blind and images and replacement is None:
        side = BLIND_SIDE if stock else image_side(processor)
        replacement = mean_image(images.values(), policy.max_pixels, side)
    return pixel_inputs(processor, policy.max_pixels, replacement)


def why_nothing_is_kept(
    model: nn.Module,
    pixels: PixelInputs | ProcessorInputs,
    policy: ImagePolicy,
    together: Sequence[Sequence[ImageRef]],
) -> str | None:
    """Why features may not be kept of images.

    Args:
        model: a Transformers model, possibly wrapped by PEFT.
        pixels: how its pictures are preprocessed.
        policy: what is asked for, and what was measured.
        together: the images of each row.

    Returns:
        The reason; None: they may be kept.

    Raises:
        AssemblyError: the recipe asks for them all the same, of images with sizes of their own.
    """
    base = unwrap_model(model)
    if not isinstance(pixels, ProcessorInputs):
        architecture = architecture_of(base)
        if architecture.features is None:
            return f"nothing of {type(base).__name__} may be kept"
        return BORROWED if architecture.inputs.stock else None
    if policy.settings.choice == "none":
        return None
    refused = policy.refused
    if refused is None and not all(pixels.as_alone(row) for row in together):
        refused = "images beside others in their row give other tokens than alone"
    if refused is not None and policy.settings.choice in ("memory", "disk"):
        raise AssemblyError(
            f"features of {type(base).__name__} cannot be kept: {refused}",
            where="data.features",
            fix="use auto or none",
        )
    return refused


def _filled(disk: DiskFeatures, images: Mapping[str, ImageRef], policy: ImagePolicy) -> DiskFeatures:
    built = disk.fill(images.values(), policy.progress)
    drift = disk.folder.drift()
    assert drift is not None
    policy.note(
        f"images: tower outputs on disk in {disk.folder.path} ({built:,} computed, the others were there); "
        f"stored as {disk.folder.identity['stored']}: largest difference {drift.largest:.2g}, "
        f"relative {drift.relative:.2g}"
    )
    return disk
