"""Judges a stock folder by its files alone: its kind, its dtype, and whether they are what was written."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from lockadapt.errors import DataError, RecipeError, SetupError, VerificationError
from lockadapt.exports.weights.shards import read_layout
from lockadapt.files import sha256_of
from lockadapt.models.origins import SIDECAR
from lockadapt.models.safetensors_file import read_shard

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
EMBEDDERS = {"vision-text-dual-encoder": "dual", "colpali": "colpali"}
"""Model types whose folders embed, and what `fresh_embeddings.py` calls their reader."""


@dataclass(frozen=True)
class Stored:
    """A folder's files.

    Attributes:
        reader: "answers" for a stock VLM, else the reader of `fresh_embeddings.py`.
        dtype: that most of its weights are stored in.
        files: how many files the manifest names; 0 without manifest.
    """

    folder: Path
    reader: str
    dtype: torch.dtype
    files: int


def read_stored(folder: Path) -> Stored:
    """Looks at config, weights and manifest, without loading the model.

    Args:
        folder: a stock folder or one of an embedding target.

    Returns:
        What the files say.

    Raises:
        RecipeError: the folder is of a kind that nothing here can verify, and which.
        VerificationError: a shard is missing, cut off or not the one of the index; a file is not what the
            manifest says.
        SafetyError: the index names a file outside the folder.
    """
    reader = _reader(folder)
    files = check_manifest(folder)
    return Stored(folder, reader, _check_weights(folder, reader), files)


def check_manifest(folder: Path) -> int:
    """Compares every file with the SHA-256 that was recorded when the folder was written.

    Args:
        folder: that `lockadapt` wrote, or any other.

    Returns:
        The number of files compared; 0 if the folder has no manifest.

    Raises:
        VerificationError: a file is changed, missing, or holds weights that the manifest does not know.
    """
    sidecar = folder / SIDECAR
    recorded = read_json(sidecar).get("files") if sidecar.is_file() else None
    if recorded is None:
        return 0
    if not isinstance(recorded, dict):
        raise VerificationError("`files` is no mapping", where=str(sidecar), fix=_AGAIN)
    for name, digest in recorded.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
            raise VerificationError(
                f"names a file outside the folder: {name!r}", where=str(sidecar), fix=_AGAIN
            )
        if not (folder / name).is_file():
            raise VerificationError(
                f"{name} is missing, which {SIDECAR} names", where=str(folder), fix=_AGAIN
            )
        if sha256_of(folder / name) != digest:
            raise VerificationError(
                f"{name} is not the file that was written: its SHA-256 differs from {SIDECAR}",
                where=str(folder),
                fix=_AGAIN,
            )
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")}
    if more := sorted(present - set(recorded)):
        raise VerificationError(
            f"{more[0]} was not written with the folder: {SIDECAR} does not name it",
            where=str(folder),
            fix=_AGAIN,
        )
    return len(recorded)


def _reader(folder: Path) -> str:
    if not folder.is_dir():
        raise RecipeError(
            "there is no such folder", where=str(folder), fix="name a merged or exported folder"
        )
    if (folder / "modules.json").is_file():
        return "sentence-transformers"
    if not (folder / "config.json").is_file():
        what = "an adapter" if (folder / "adapter_config.json").is_file() else "no model"
        raise RecipeError(
            f"holds {what}: config.json is missing",
            where=str(folder),
            fix="name a merged or exported folder; an adapter is verified by merging it",
        )
    config = read_json(folder / "config.json")
    kind = str(config.get("model_type"))
    if config.get("quantization_config"):
        raise RecipeError(
            "holds quantized weights, of which no rounding says what they may compute",
            where=str(folder),
            fix="verify the folder that was quantized",
        )
    if kind in EMBEDDERS:
        return EMBEDDERS[kind]
    # Here, because it imports Transformers' models, and a folder that is none should be refused at once.
    from lockadapt.architectures import ARCHITECTURES
    from lockadapt.architectures.generic import answers_images

    if answers_images(kind):
        return "answers"
    if kind not in (
        known := sorted(
            architecture.config_class.model_type for architecture in ARCHITECTURES if architecture.answers
        )
    ):
        raise RecipeError(
            f"holds a model of the type {kind!r}, which cannot be verified",
            where=str(folder),
            fix="there is a proof for models that answer questions about images, and for "
            f"{', '.join([*known, *EMBEDDERS])} and sentence-transformers folders",
        )
    return "answers"


def _check_weights(folder: Path, reader: str) -> torch.dtype:
    """Checks the header of every shard and the index; the dtype that holds most entries."""
    try:
        if reader == "sentence-transformers":
            shards = tuple(read_shard(path) for path in sorted(folder.rglob("*.safetensors")))
        else:
            shards = read_layout(folder).shards
    except (DataError, SetupError) as error:
        raise VerificationError(error.message, where=error.where, fix=_AGAIN) from error
    entries: Counter[str] = Counter()
    for tensor in (tensor for shard in shards for tensor in shard.tensors):
        entries[tensor.dtype] += math.prod(tensor.shape)
    stored = [name for name, _ in entries.most_common() if name in DTYPES]
    if not stored:
        raise VerificationError(
            f"holds no weights in {', '.join(str(kind).removeprefix('torch.') for kind in DTYPES.values())}",
            where=str(folder),
            fix=_AGAIN,
        )
    return DTYPES[stored[0]]


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file that holds a JSON object.

    Args:
        path: the file.

    Returns:
        The object.

    Raises:
        VerificationError: it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise VerificationError(f"is no JSON: {error}", where=str(path), fix=_AGAIN) from error
    if not isinstance(content, dict):
        raise VerificationError("is no JSON object", where=str(path), fix=_AGAIN)
    return content


_AGAIN = "merge or export the run again, or copy the folder again"
