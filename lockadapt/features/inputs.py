"""Image inputs by policy: pixels, tower outputs kept in memory or on disk, or image tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from torch import Tensor, nn

from lockadapt.architectures import architecture_of, inputs_of
from lockadapt.architectures.base import unwrap_model
from lockadapt.architectures.generic.inputs import StockInputs
from lockadapt.data.encode import Encoded, distinct_images
from lockadapt.data.pixels import Frozen, ImageInputs, PixelInputs, ProcessorInputs, mean_image
from lockadapt.data.sample import ImageRef
from lockadapt.errors import AssemblyError
from lockadapt.features.folder import FeatureFolder
from lockadapt.features.identity import feature_identity
from lockadapt.features.image_tokens import ImageTokenInputs, image_token_inputs
from lockadapt.features.in_memory import FeatureInputs
from lockadapt.features.on_disk import DiskFeatures
from lockadapt.features.policy import FeatureSettings, ImagePolicy, Note, choose_store
from lockadapt.features.tower import image_side, tower_batch, tower_outputs

IMAGE_TOKENS: tuple[Frozen, ...] = ("image_tokens", "crops")
"""What objectives that generate images have of an image."""


BLIND_SIDE = 64
"""Side in pixels of the mean image where images have sizes of their own; it is stretched to each."""


def inputs_by_objective(
    model: nn.Module,
    processor: Any,
    frozen: Mapping[str, Frozen],
    rows: Mapping[str, Sequence[Encoded]],
    policy: ImagePolicy,
    reused: bool = True,
) -> dict[str, ImageInputs]:
    """Makes image inputs by objective; those that use the tower share one, as do those that generate images.

    Args:
        model: a Transformers model, possibly wrapped by PEFT.
        processor: the model's.
        frozen: what each objective needs of an image.
        rows: training and validation rows by objective.
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
        shared = tower_inputs(model, processor, distinct_images(seen), policy, reused)
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
) -> ImageInputs:
    """Makes what gives these images to a model that sees them through its tower, filled already.

    Args:
        model: a Transformers model, possibly wrapped by PEFT.
        processor: the model's.
        images: by key.
        policy: how they become inputs; `policy.note` is told which and why.
        reused: as `choose_store` takes it.

    Returns:
        Pixel values at every step, or features kept in memory or on disk.

    Raises:
        DiskError: features shall be kept on disk and do not fit.
    """
    replacement, settings = policy.mean if policy.blind else None, policy.settings
    if inputs_of(processor).stock:
        return _processor_inputs(processor, images, policy)
    if policy.blind and images and replacement is None:
        replacement = mean_image(images.values(), policy.max_pixels, image_side(processor))
    pixels = PixelInputs(processor.image_processor, policy.max_pixels, replacement)
    if not images:
        policy.note("no images")
        return pixels
    base = unwrap_model(model)
    if architecture_of(base).features is None:
        policy.note(f"images: pixels at every step, as nothing of {type(base).__name__} may be kept")
        return pixels
    kept = FeatureInputs(pixels, lambda values: tower_outputs(base, values), tower_batch(base))

    def memory_bytes() -> int:
        # Not kept: images that go through the tower in the same batches as for the disk have the same
        # features to the bit.
        first = kept.tower(pixels([next(iter(images.values()))]))
        assert isinstance(first, Tensor)
        return first.nbytes * (1 if policy.blind else len(images))

    @cache
    def disk() -> DiskFeatures:
        return disk_features(model, processor, pixels, settings, policy.note)

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


def _processor_inputs(processor: Any, images: Mapping[str, ImageRef], policy: ImagePolicy) -> ProcessorInputs:
    """Pixels at every step, by the stock processor.

    Raises:
        AssemblyError: features shall be kept.
    """
    if policy.settings.choice in ("memory", "disk"):
        raise AssemblyError(
            f"the feature cache takes images of one size, those of {type(processor).__name__} have their own",
            where="data.features",
            fix="use auto or none",
        )
    replacement = policy.mean if policy.blind else None
    if policy.blind and images and replacement is None:
        replacement = mean_image(images.values(), policy.max_pixels, BLIND_SIDE)
    policy.note("images: pixels at every step, as they have sizes of their own")
    return ProcessorInputs(StockInputs(processor), policy.max_pixels, replacement)


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
