"""One digest of a model folder's config, tokenizer and weights, quick enough for every opening."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from pydantic_core import from_json

from lockadapt.errors import DataError
from lockadapt.files import opened
from lockadapt.models.safetensors_file import AGAIN, StoredTensor, read_shard

CONFIGS = (
    *("config.json", "tokenizer.json", "tokenizer_config.json"),
    *("preprocessor_config.json", "processor_config.json", "chat_template.jinja"),
)
"""What a model computes with beside weights, of what Transformers always fetches."""

PIECES, PIECE = 16, 4096
"""A tensor of more than PIECES x PIECE bytes is represented by that many pieces of so many bytes, evenly
spread, its first and its last among them."""

_INDEX = "model.safetensors.index.json"


def folder_digest(folder: Path) -> str:
    """Digests configs, and key, dtype, shape and spread bytes of every tensor.

    A tensor of up to 64 KiB counts whole. In larger ones a change of few values can stay unseen; another
    training, scale or file cannot. `lockadapt.tuning.base_identity` compares loaded weights as well.

    Args:
        folder: config.json and *.safetensors, as Transformers writes them.

    Returns:
        SHA-256, hex.

    Raises:
        DataError: a file of weights is missing or damaged.
    """
    digest = hashlib.sha256()
    for name in CONFIGS:
        file = folder / name
        digest.update(
            f"{name} {hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else '-'}\n".encode()
        )
    for file in _weights(folder):
        if not file.is_file():
            raise DataError("is missing", where=str(file), fix=AGAIN)
        shard = read_shard(file)
        with opened(file, os.O_RDONLY) as handle:
            for tensor in sorted(shard.tensors, key=lambda entry: entry.key):
                digest.update(f"{tensor.key} {tensor.dtype} {tensor.shape}\n".encode())
                for begin, size in _pieces(tensor):
                    digest.update(os.pread(handle, size, begin))
    return digest.hexdigest()


def _weights(folder: Path) -> list[Path]:
    """Those that are loaded; a folder of the Hub may hold copies in other layouts."""
    index = folder / _INDEX
    if not index.is_file():
        whole = folder / "model.safetensors"
        return [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
    try:
        names = set(from_json(index.read_bytes())["weight_map"].values())
        if any(Path(name).name != name for name in names):
            raise ValueError("a name of a file leads out of the folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"is damaged: {error}", where=str(index), fix=AGAIN) from error
    return [folder / name for name in sorted(names)]


def _pieces(tensor: StoredTensor) -> Iterator[tuple[int, int]]:
    size = tensor.end - tensor.begin
    if size <= PIECES * PIECE:
        yield tensor.begin, size
        return
    for number in range(PIECES):
        yield tensor.begin + (size - PIECE) * number // (PIECES - 1), PIECE
