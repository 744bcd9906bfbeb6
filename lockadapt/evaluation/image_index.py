"""An index of embedded images on disk: a float32 matrix, and of which file each row is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lockadapt.errors import DataError, RecipeError, VerificationError
from lockadapt.files import write_bytes

FILE, FORMAT = "index.json", 1
"""Name and version of what says which file a row is of."""

_MATRIX = re.compile(r"embeddings-[0-9a-f]{16}\.safetensors")
_FIX = "free space, or choose another --index"


@dataclass(frozen=True)
class IndexedFile:
    """A file as it was embedded; `name` is relative to the folder of images, `sha256` of its bytes."""

    name: str
    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class ImageIndex:
    """Files and their embeddings, float32 (files, dimension), L2-normalised."""

    files: tuple[IndexedFile, ...] = ()
    embeddings: Tensor = field(default_factory=lambda: torch.zeros(0, 0))


def read_index(folder: Path, model: str, width: int | None = None) -> ImageIndex:
    """Reads the index in a folder; it is empty if there is none.

    Args:
        folder: of the index.
        model: fingerprint of the model that will search.
        width: of that model's embeddings; None: any.

    Returns:
        The index.

    Raises:
        RecipeError: another model made it.
        DataError: it is damaged, or no index of lockadapt.
        VerificationError: an embedding is not finite, or of another width than the model's.
    """
    if not (folder / FILE).is_file():
        return ImageIndex()
    fix = "name another --index, or remove this one"
    try:
        index = _read(folder)
        files = tuple(IndexedFile(**file) for file in index["files"])
        embeddings = load((folder / index["embeddings"]).read_bytes())["embeddings"] if files else None
    except (ValueError, KeyError, TypeError, SafetensorError, FileNotFoundError) as error:
        raise DataError("the index is damaged, or none", where=str(folder), fix=fix) from error
    if index["model"] != model:
        raise RecipeError("another model made the index", where=f"--index {folder}", fix=fix)
    if embeddings is None:
        return ImageIndex()
    if embeddings.ndim != 2 or len(embeddings) != len(files):
        raise DataError("the index is damaged: files and embeddings differ", where=str(folder), fix=fix)
    if width is not None and embeddings.shape[1] != width:
        raise VerificationError(
            f"its embeddings have {embeddings.shape[1]} values, the model's {width}",
            where=str(folder),
            fix=fix,
        )
    wrong = (~embeddings.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if wrong:
        raise VerificationError(
            f"the embedding of {files[wrong[0]].name} is not finite, one of {len(wrong)}",
            where=str(folder),
            fix=fix,
        )
    return ImageIndex(files, embeddings)


def write_index(folder: Path, model: str, index: ImageIndex) -> None:
    """Writes an index beside the old one, which stays whole until the new one is there.

    Only for whoever has claimed the folder.

    Args:
        folder: of the index.
        model: fingerprint of the model that made it.
        index: what is written.

    Raises:
        DiskError: the disk is full, or the place cannot be written.
    """
    data = save({"embeddings": index.embeddings.contiguous()})
    name = f"embeddings-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
    before = _read(folder)["embeddings"] if (folder / FILE).is_file() else name
    write_bytes(folder / name, data, fix=_FIX)
    files = [dataclasses.asdict(file) for file in index.files]
    text = json.dumps({"format": FORMAT, "model": model, "embeddings": name, "files": files}, indent=1)
    write_bytes(folder / FILE, text.encode(), fix=_FIX)
    if before != name:
        (folder / before).unlink(missing_ok=True)


def _read(folder: Path) -> dict[str, Any]:
    index = json.loads((folder / FILE).read_text(encoding="utf-8"))
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError("another format")
    if not _MATRIX.fullmatch(index["embeddings"]):
        raise ValueError("another file")
    return index
