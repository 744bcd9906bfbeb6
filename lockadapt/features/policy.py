"""Decides whether a frozen tower's outputs are computed at every step, kept in memory, or kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

Choice = Literal["auto", "memory", "disk", "none"]
Store = Literal["memory", "disk", "none"]
Note = Callable[[str], None]
Progress = Callable[[int, int], None]

DEFAULT_CACHE = Path("~/.cache/lockadapt/features")


def silent(_: str) -> None:
    """No-op."""


@dataclass(frozen=True)
class FeatureSettings:
    """Where frozen tower outputs are kept, and how much of them.

    Attributes:
        choice: `auto` keeps them in memory if they fit there, else on disk if they fit there, and only if
            images are used more than once.
        memory_gib: the most memory, for `auto`.
        disk_gib: the most disk, for `auto` and `disk`.
        stored: dtype on disk, one of `shards.STORED`.
        cache: folder on disk.
        workers: processes that decode and preprocess images while the cache is built.
    """

    choice: Choice = "auto"
    memory_gib: float = 2.0
    disk_gib: float = 20.0
    stored: str = "bfloat16"
    cache: Path = DEFAULT_CACHE
    workers: int = 0


@dataclass(frozen=True)
class ImagePolicy:
    """How the images of a run or an evaluation become inputs of its batches.

    Attributes:
        settings: where frozen outputs are kept.
        max_pixels: larger images are refused before decoding.
        blind: every image is replaced by a mean image.
        mean: that image; default: the mean of the images asked for.
        projector_trains: whether the projector trains in any stage. If not, its outputs may be kept.
        refused: why nothing is kept of images with sizes of their own, as was measured; None: it may be.
        note: is told what was decided, and why.
        progress: is told (done, all) while frozen outputs are computed.
    """

    settings: FeatureSettings
    max_pixels: int
    blind: bool = False
    mean: Image.Image | None = None
    projector_trains: bool = True
    refused: str | None = None
    note: Note = silent
    progress: Progress | None = None


def choose_store(
    settings: FeatureSettings,
    images: int,
    reused: bool,
    memory_bytes: Callable[[], int],
    disk_refusal: Callable[[], str | None],
) -> tuple[Store, str]:
    """Decides where the tower outputs of some images are kept.

    Args:
        settings: what the user allows.
        images: how many distinct ones there are.
        reused: whether they are used more than once on average; `auto` keeps nothing if not.
        memory_bytes: bytes of all outputs in memory; only asked where it matters, as it may run the tower.
        disk_refusal: why they cannot be stored on disk, None if they can; only asked where it matters.

    Returns:
        Where, and why in words that follow "images: ".
    """
    every_step = "pixels at every step"
    if not images or settings.choice == "none":
        return "none", every_step
    if settings.choice == "auto" and not reused:
        return "none", f"{every_step}, as each is used once only"
    if settings.choice == "disk":
        return "disk", ""
    size = memory_bytes()
    if settings.choice == "memory" or size <= settings.memory_gib * 2**30:
        return "memory", f"tower outputs kept in memory, {size / 2**30:.3g} GiB"
    why = f"{size / 2**30:.3g} GiB of tower outputs are more than feature_memory_gib allows"
    if settings.disk_gib > 0:
        refused = disk_refusal()
        if refused is None:
            return "disk", why
        why = f"{why}; {refused}"
    return "none", f"{every_step}: {why}"
