"""Trains on a folder of images and writes a folder that `JanusVQVAE.from_pretrained` loads."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lockadapt.architectures.janus.image_tokenizer import TokenizerShape, new_image_tokenizer
from lockadapt.console import PLAIN_SECONDS, Reporter
from lockadapt.data.images import open_image
from lockadapt.data.paths import DataRoot
from lockadapt.data.readers.files import read_rows
from lockadapt.data.readers.pictures import Pictures
from lockadapt.data.sample import ImageRef
from lockadapt.errors import DataError, LockadaptError, RecipeError
from lockadapt.files import new_folder, write_json
from lockadapt.models.preprocessing import pixels
from lockadapt.models.quiet import quiet
from lockadapt.training.image_tokenizer.losses import TowerDistance
from lockadapt.training.image_tokenizer.train import (
    TokenizerTraining,
    score_image_tokenizer,
    train_image_tokenizer,
)

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif", ".jp2"}
)
MAX_PIXELS = 100_000_000
SHOWN = 32
"""Held-out images in the picture of originals and reconstructions."""
LARGEST = 8 * 2**30
"""Bytes of images that are kept in memory at most."""
_REPORTED = {"codebook_size": "codes"}
"""What readers of reports know a value of the shape as."""


def train_folder(
    images: Path,
    output: Path,
    shape: TokenizerShape,
    settings: TokenizerTraining,
    reporter: Reporter,
    *,
    tower: str | None = None,
    held_out: float = 0.05,
    device: str = "auto",
) -> dict[str, Any]:
    """Trains an image tokenizer on a folder's or a file's images and writes it, whole or not at all.

    Beside the model and its image processor, the folder holds `report.json` and `reconstructions.png`.

    Args:
        images: a folder that is searched through, or a .jsonl whose rows name images in `image` or `images`.
        output: new or empty folder.
        shape: what is trained.
        settings: how it is trained.
        reporter: where progress goes.
        tower: folder or Hub id of the tower of the perceptual term.
        held_out: share of the images that is scored and not trained on, at least one image.
        device: `auto` is the GPU where there is one.

    Returns:
        The scores, what was trained and how long it took, as in `report.json`, and `output`.

    Raises:
        DataError: there are no two images, too many for the memory, or one cannot be opened.
        SafetyError: an image has too many pixels.
        RecipeError: `output` is not empty, or as `TokenizerShape.widths`.
    """
    started = time.monotonic()
    shape.widths()
    if not 0 <= held_out < 1:  # NaN is never in bounds
        raise RecipeError(f"{held_out} is out of bounds", where="--held-out", fix="give 0 to below 1")
    chosen = _device(device)
    with new_folder(output, what="training an image tokenizer") as folder:
        model, processor = new_image_tokenizer(shape, settings.seed)
        train, test = _split(find_images(images), held_out, images)
        if 3 * shape.size**2 * len(train) > LARGEST:
            raise DataError(
                f"{len(train):,} images of {shape.size} pixels do not fit into {LARGEST >> 30} GiB",
                where=str(images),
                fix="name a folder with fewer images, or a smaller --size",
            )
        learned, unseen = (_bytes(part, processor, reporter) for part in (train, test))
        distance = None if tower is None else TowerDistance(tower, shape.size)
        if distance is not None:
            distance.to(chosen)
        model.to(chosen)
        train_image_tokenizer(
            model, learned, settings, distance=distance, report=_progress(reporter, settings.steps)
        )
        scores, back = score_image_tokenizer(model, unseen)
        report = {
            **asdict(scores),
            **{_REPORTED.get(name, name): value for name, value in asdict(shape).items()},
            "training": asdict(settings),
            "trained_on": len(train),
            "seconds": time.monotonic() - started,
        }
        with quiet():
            model.cpu().save_pretrained(folder)
            processor.save_pretrained(folder)
        write_json(folder / "report.json", report)
        side_by_side(unseen[:SHOWN], back[:SHOWN]).save(folder / "reconstructions.png")
    return {"output": str(output), **report}


def find_images(source: Path) -> list[ImageRef]:
    """Finds the images of a folder and its subfolders by name, or those that a .jsonl's rows name, each once.

    Args:
        source: the folder or the .jsonl.

    Returns:
        The images.

    Raises:
        DataError: there is no such place, or no image in it.
        SafetyError: a row names a file outside the folder of the .jsonl.
    """
    images: dict[str, ImageRef] = {}
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                images[str(path.resolve())] = ImageRef(str(path.resolve()), path=path)
    elif source.is_file():
        pictures = Pictures(DataRoot(source.parent))
        for where, row in read_rows(source):
            if isinstance(row, LockadaptError):
                raise row
            values = row.get("images", row.get("image")) if isinstance(row, dict) else None
            images.update({image.key: image for image in pictures.refs(values, where)})
    if not images:
        raise DataError(
            "there are no images", where=str(source), fix="name a folder with images, or a .jsonl with rows"
        )
    return list(images.values())


def side_by_side(originals: Tensor, back: Tensor, columns: int = 8) -> Image.Image:
    """One picture with rows of originals over rows of what came back, from bytes (images, 3, side, side)."""
    side, number = originals.shape[-1], len(originals)
    rows = -(-number // columns)
    canvas = Image.new("RGB", (min(columns, number) * side, 2 * rows * side), "white")
    for line, batch in enumerate((originals, back)):
        for index, values in enumerate(batch):
            picture = Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())
            canvas.paste(picture, (index % columns * side, (2 * (index // columns) + line) * side))
    return canvas


def _split(images: list[ImageRef], held_out: float, source: Path) -> tuple[list[ImageRef], list[ImageRef]]:
    """Splits by a hash of each image's name, so that adding images moves none to the other side."""
    if len(images) < 2:
        raise DataError(
            "one image cannot be held out and trained on", where=str(source), fix="give more images"
        )

    def order(image: ImageRef) -> str:
        name = image.key if image.path is None else image.path.name
        return hashlib.sha256(name.encode()).hexdigest()

    ranked = sorted(images, key=order)
    number = min(max(1, round(held_out * len(images))), len(images) - 1)
    return ranked[number:], ranked[:number]


def _bytes(images: list[ImageRef], processor: Any, reporter: Reporter) -> Tensor:
    """uint8 (images, 3, side, side), as the image processor resizes them."""
    report, rows = reporter.counted("images read"), []
    for start in range(0, len(images), 64):
        part = [open_image(image, MAX_PIXELS) for image in images[start : start + 64]]
        rows.append(((pixels(processor, part) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))
        report(start + len(part), len(images))
    return torch.cat(rows)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise DataError(f"there is no device {name!r}", where="--device", fix="use auto or cpu") from error


def _progress(reporter: Reporter, steps: int) -> Any:
    """Prints the losses since the last line, at most every few seconds."""
    sums: dict[str, list[float]] = {}
    last = [time.monotonic()]

    def report(step: int, losses: dict[str, float]) -> None:
        for name, value in losses.items():
            sums.setdefault(name, []).append(value)
        now = time.monotonic()
        if now - last[0] >= PLAIN_SECONDS or step == steps:
            told = ", ".join(f"{name} {sum(values) / len(values):.4f}" for name, values in sums.items())
            reporter.note(f"step {step:,} of {steps:,}: {told}")
            sums.clear()
            last[0] = now

    return report
