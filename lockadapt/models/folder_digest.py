"""One digest of every byte of a model folder's configs, tokenizer and weights, taken at every opening."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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

CHUNK = 4 * 1024**2
"""Bytes that are read at once."""
THREADS, A_THREAD = 8, 256 * 1024**2
"""Tensors that are read at the same time, at most, and bytes of a file that are worth a thread, which takes
address space."""
WHOLE = "whole:"
"""Before digests of all bytes. Those without it are older: of a sample of large tensors."""

_INDEX = "model.safetensors.index.json"


def folder_digest(folder: Path) -> str:
    """Digests configs, and key, dtype, shape and bytes of every tensor.

    Takes about 0.8 s a GB and core where the weights are in memory already; tensors are read in parallel.

    Args:
        folder: config.json and *.safetensors, as Transformers writes them.

    Returns:
        `WHOLE` and SHA-256, hex.

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
        tensors = sorted(shard.tensors, key=lambda entry: entry.key)
        with opened(file, os.O_RDONLY) as handle:
            for tensor, contents in zip(tensors, _digests(handle, tensors), strict=True):
                digest.update(f"{tensor.key} {tensor.dtype} {tensor.shape} {contents}\n".encode())
    return WHOLE + digest.hexdigest()


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


def _digests(handle: int, tensors: Sequence[StoredTensor]) -> list[str]:
    """SHA-256 of each tensor's bytes."""
    size = sum(tensor.end - tensor.begin for tensor in tensors)
    threads = min(THREADS, os.cpu_count() or 1, 1 + size // A_THREAD)
    if threads == 1:
        return [_contents(handle, tensor) for tensor in tensors]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(partial(_contents, handle), tensors))


def _contents(handle: int, tensor: StoredTensor) -> str:
    digest = hashlib.sha256()
    for begin in range(tensor.begin, tensor.end, CHUNK):
        digest.update(os.pread(handle, min(CHUNK, tensor.end - begin), begin))
    return digest.hexdigest()
