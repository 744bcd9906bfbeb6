"""The shard: features of some images in one safetensors file, in bfloat16, float32 or int8, memory-mapped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from lockadapt.errors import DataError, VerificationError
from lockadapt.files import write_bytes
from lockadapt.models.safetensors_file import read_shard

STORED = {"bfloat16": torch.bfloat16, "float32": torch.float32, "int8": torch.int8}
NAMES = {"bfloat16": "BF16", "float32": "F32", "int8": "I8"}
# One entry: safetensors writes several in no fixed order, and equal shards must be equal files.
META = "lockadapt"
FIX = "it is computed again"


@dataclass(frozen=True)
class Layout:
    """What every image takes: `tokens` x `channels` numbers, stored as `STORED`; int8 has channel scales."""

    tokens: int
    channels: int
    stored: str

    @property
    def image_bytes(self) -> int:
        """Bytes of an image in a shard."""
        scales = 4 * self.channels if self.stored == "int8" else 0
        return self.tokens * self.channels * STORED[self.stored].itemsize + scales

    def write(
        self, path: Path, fingerprint: str, keys: Sequence[str], batches: Iterable[torch.Tensor]
    ) -> None:
        """See `write_shard`; features come in batches, which are never held twice."""
        write_shard(path, fingerprint, list(keys), _joined(batches, len(keys)), self.stored)

    def open(self, path: Path, fingerprint: str, thorough: bool = False) -> Shard:
        """See `open_shard`."""
        return open_shard(path, fingerprint, self, thorough)


@dataclass(frozen=True)
class Drift:
    """How far stored features are from the tower's: largest difference, and relative norm of it."""

    largest: float
    relative: float


@dataclass(frozen=True)
class Shard:
    """An open shard.

    `features` (images, bytes of an image's numbers) uint8 and `scales` (images, channels) float32 or
    None stay on the disk until they are copied.
    """

    keys: tuple[str, ...]
    drift: Drift
    features: np.ndarray[Any, Any]
    scales: np.ndarray[Any, Any] | None


def packed(features: torch.Tensor, stored: str) -> dict[str, torch.Tensor]:
    """Features (images, tokens, channels) as they are stored.

    int8 is symmetric, with one float32 scale for each image and channel: a CNN's channels differ by orders of
    magnitude.
    """
    if stored != "int8":
        return {"features": features.to(STORED[stored]).contiguous()}
    values = features.float()
    scales = values.abs().amax(dim=1) / 127
    codes = (values / scales.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)).round()
    return {"features": codes.clamp(-127, 127).to(torch.int8).contiguous(), "scales": scales.contiguous()}


def unpacked(features: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    """What `packed` features mean: float32 (images, tokens, channels); scales are (images, channels)."""
    return features.float() if scales is None else features.float() * scales.unsqueeze(1)


def drift_of(features: torch.Tensor, parts: dict[str, torch.Tensor]) -> Drift:
    """The drift of stored parts from the tower's features."""
    truth = features.float()
    difference = unpacked(parts["features"], parts.get("scales")) - truth
    norm = float(torch.linalg.vector_norm(truth, dtype=torch.float64))
    moved = float(torch.linalg.vector_norm(difference, dtype=torch.float64))
    return Drift(float(difference.abs().max()), moved / norm if norm else 0.0)


def write_shard(path: Path, fingerprint: str, keys: list[str], features: torch.Tensor, stored: str) -> None:
    """Writes a shard; the same features give the same bytes. The caller must be the only one who writes it.

    Args:
        path: file to write.
        fingerprint: of the cache that it belongs to.
        keys: of the images.
        features: floating, (images, tokens, channels).
        stored: dtype of the file, one of `STORED`.

    Raises:
        DiskError: the disk is full, or the place cannot be written; nothing is left at `path`.
    """
    parts = packed(features, stored)
    meta = {
        "fingerprint": fingerprint,
        "drift": asdict(drift_of(features, parts)),
        "sha256": digest_of([parts[name].reshape(-1).view(torch.uint8).numpy() for name in sorted(parts)]),
        "keys": keys,
    }
    write_bytes(path, save(parts, metadata={META: json.dumps(meta)}), fix="free space, or change data.cache")


def open_shard(path: Path, fingerprint: str, layout: Layout, thorough: bool = False) -> Shard:
    """Maps a shard, and checks header, shapes and size.

    Args:
        path: the file.
        fingerprint: of the cache that it must belong to.
        layout: what every image takes.
        thorough: read it all, and compare its SHA-256 too.

    Returns:
        The shard, its tensors mapped and read only when used.

    Raises:
        VerificationError: it is damaged, cut off, or another cache's.
        FileNotFoundError: it is not there.
    """
    try:
        file = read_shard(path)
        meta = json.loads(file.metadata[META])
        keys, drift = tuple(meta["keys"]), Drift(**meta["drift"])
    except DataError as error:
        raise VerificationError(error.message, where=str(path), fix=FIX) from error
    except (ValueError, KeyError, TypeError) as error:
        raise VerificationError("the header is damaged", where=str(path), fix=FIX) from error
    stored = {
        stored_tensor.key: (stored_tensor.dtype, list(stored_tensor.shape)) for stored_tensor in file.tensors
    }
    wanted = {"features": (NAMES[layout.stored], [len(keys), layout.tokens, layout.channels])}
    if layout.stored == "int8":
        wanted["scales"] = ("F32", [len(keys), layout.channels])
    if meta["fingerprint"] != fingerprint or stored != wanted:
        raise VerificationError("it holds other features", where=str(path), fix=FIX)
    raw = np.memmap(path, mode="r")
    bodies = {
        stored_tensor.key: np.asarray(raw)[stored_tensor.begin : stored_tensor.end]
        for stored_tensor in file.tensors
    }
    if thorough and digest_of([bodies[name] for name in sorted(bodies)]) != meta["sha256"]:
        raise VerificationError("its bytes are not those that were written", where=str(path), fix=FIX)
    scales = None
    if "scales" in bodies:
        scales = bodies["scales"].view(np.float32).reshape(len(keys), layout.channels)
    return Shard(keys, drift, bodies["features"].reshape(len(keys), -1), scales)


def digest_of(parts: Sequence[np.ndarray[Any, Any]]) -> str:
    """SHA-256 (hex) of arrays of bytes, one behind the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.data)
    return digest.hexdigest()


def _joined(batches: Iterable[torch.Tensor], count: int) -> torch.Tensor:
    """Batches in one tensor, without holding all of them twice."""
    whole, at = None, 0
    for batch in batches:
        if whole is None:
            whole = batch.new_empty((count, *batch.shape[1:]))
        whole[at : at + len(batch)] = batch
        at += len(batch)
    assert whole is not None
    return whole
