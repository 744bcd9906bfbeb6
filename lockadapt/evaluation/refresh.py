"""Brings an index of images up to date with their folder: only what is new or changed is embedded."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lockadapt.data.paths import DataRoot
from lockadapt.data.sample import ImageRef
from lockadapt.errors import DataError, LockadaptError
from lockadapt.evaluation.image_index import ImageIndex, IndexedFile
from lockadapt.files import sha256_of

SUFFIXES = frozenset(
    (
        *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k"),
    )
)
"""Endings of files taken for images, as far as `lockadapt.data.images` opens them."""

PART = 1024
"""Images that are embedded between two writings of the index."""

Embed = Callable[[Sequence[ImageRef]], tuple[dict[str, Tensor], dict[str, str]]]
"""Images -> embeddings, float32 (dimension,), by key; and what is wrong with those that cannot be opened, by
key."""


@dataclass(frozen=True)
class Changes:
    """How an update changed an index; `bad` are files that cannot be opened, by name, with the reason."""

    embedded: int
    dropped: int
    bad: dict[str, str]


def refresh(
    index: ImageIndex, images: Path, embed: Embed, keep: Callable[[ImageIndex], None]
) -> tuple[ImageIndex, Changes]:
    """Brings an index up to date with a folder and its subfolders.

    A file is taken as it was if name, size and time of change are the same; else its bytes say whether they
    were embedded before, under whatever name.

    Args:
        index: as it was.
        images: the folder.
        embed: what embeds files.
        keep: given the index after every `PART` images, so that an interrupted run goes on there.

    Returns:
        The index as it is now, and what changed.

    Raises:
        DataError: the folder is not there, or holds no image that can be opened.
    """
    rows = {file.sha256: index.embeddings[number] for number, file in enumerate(index.files)}
    bad: dict[str, str] = {}
    known = {file.name: file for file in index.files}
    files: list[IndexedFile] = []
    new: dict[str, ImageRef] = {}
    for name, path in _listed(images, bad):
        try:
            file = _looked_at(name, path, known)
        except OSError as error:
            bad[name] = error.strerror or "cannot be read"
            continue
        files.append(file)
        if file.sha256 not in rows:
            new.setdefault(file.sha256, ImageRef(path.as_posix(), path=path))
    wanted, reasons = list(new.items()), dict[str, str]()
    for start in range(0, len(wanted), PART):
        part = wanted[start : start + PART]
        made, wrong = embed([image for _, image in part])
        rows |= {digest: made[image.key] for digest, image in part if image.key in made}
        reasons |= {digest: wrong[image.key] for digest, image in part if image.key in wrong}
        if start + PART < len(wanted):
            keep(_of(files, rows))
    result = _of(files, rows)
    bad |= {file.name: reasons[file.sha256] for file in files if file.sha256 in reasons}
    if not result.files:
        why = f"none of its {len(bad)} images can be opened" if bad else "the folder holds no images"
        raise DataError(why, where=f"--images {images}", fix="name a folder with PNG, JPEG or other images")
    present = {file.name for file in result.files}
    dropped = sum(file.name not in present for file in index.files)
    return result, Changes(len(new) - len(reasons), dropped, bad)


def _looked_at(name: str, path: Path, known: Mapping[str, IndexedFile]) -> IndexedFile:
    stat = path.stat()
    file = IndexedFile(name, stat.st_size, stat.st_mtime_ns, "")
    old = known.get(name)
    same = old is not None and dataclasses.replace(old, sha256="") == file
    return old if old is not None and same else dataclasses.replace(file, sha256=sha256_of(path))


def _of(files: Sequence[IndexedFile], rows: Mapping[str, Tensor]) -> ImageIndex:
    kept = tuple(file for file in files if file.sha256 in rows)
    return ImageIndex(kept, torch.stack([rows[file.sha256] for file in kept])) if kept else ImageIndex()


def _listed(images: Path, bad: dict[str, str]) -> Iterator[tuple[str, Path]]:
    """Names and paths of the images below a folder, hidden ones left out, in the order of their names."""
    if not images.is_dir():
        raise DataError("there is no such folder", where=f"--images {images}", fix="name a folder of images")
    root, names = DataRoot(images), list[str]()
    for above, folders, files in os.walk(root.folder):
        folders[:] = [folder for folder in folders if not folder.startswith(".")]
        below = Path(above).relative_to(root.folder)
        names += [(below / name).as_posix() for name in files if not name.startswith(".")]
    for name in sorted(name for name in names if Path(name).suffix.lower() in SUFFIXES):
        try:
            path = root.join(name, name)
        except LockadaptError as error:
            bad[name] = error.message
            continue
        if path.is_file():
            yield name, path
        else:
            bad[name] = "is no file"
