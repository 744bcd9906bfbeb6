"""The shard of images with different numbers of tokens: levels one behind the other, and their lengths."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from lockadapt.architectures.kept import Facts, ImageRecord, RaggedFeatures
from lockadapt.errors import DataError, VerificationError
from lockadapt.features.shards import FIX, META, NAMES, STORED, Drift, digest_of
from lockadapt.files import write_bytes
from lockadapt.models.safetensors_file import read_shard

FORMAT = 2
"""Version of these files, which is part of the cache's fingerprint; shards of one size are version 1."""

_SCALES = "scales of "


@dataclass(frozen=True)
class RaggedLayout:
    """What images take.

    Attributes:
        channels: of each level.
        stored: one of `STORED`.
        image_bytes: of an image in a shard, about: the mean of those that were tried.
    """

    channels: Mapping[str, int]
    stored: str
    image_bytes: int

    @classmethod
    def tried(cls, records: Sequence[ImageRecord], stored: str) -> RaggedLayout:
        """The layout that some images' records have."""
        channels = {name: int(level.shape[1]) for name, level in records[0].levels.items()}
        numbers = sum(level.numel() for record in records for level in record.levels.values())
        scales = 4 * sum(channels.values()) if stored == "int8" else 0
        return cls(channels, stored, max(1, numbers * STORED[stored].itemsize // len(records) + scales))

    def write(
        self, path: Path, fingerprint: str, keys: Sequence[str], batches: Iterable[Sequence[ImageRecord]]
    ) -> None:
        """See `write_ragged`."""
        write_ragged(path, fingerprint, keys, list(itertools.chain.from_iterable(batches)), self)

    def open(self, path: Path, fingerprint: str, thorough: bool = False) -> RaggedShard:
        """See `open_ragged`."""
        return open_ragged(path, fingerprint, self, thorough)


@dataclass(frozen=True)
class RaggedShard:
    """An open shard, whose numbers stay on the disk until they are copied.

    Attributes:
        keys: content keys of the images.
        drift: of the stored numbers from the tower's.
        levels: uint8 (tokens of all images, bytes of a token) by name.
        begins: where each image's tokens begin, and last where all end, int64 (images + 1,) by name.
        facts, processor_keys: of each image, see `ImageRecord`.
        scales: float32 (images, channels) by name, for int8.
    """

    keys: tuple[str, ...]
    drift: Drift
    levels: Mapping[str, np.ndarray[Any, Any]]
    begins: Mapping[str, np.ndarray[Any, Any]]
    facts: tuple[Facts, ...]
    processor_keys: tuple[Facts, ...]
    scales: Mapping[str, np.ndarray[Any, Any]]


def write_ragged(
    path: Path, fingerprint: str, keys: Sequence[str], records: Sequence[ImageRecord], layout: RaggedLayout
) -> None:
    """Writes a shard; the same records give the same bytes. The caller must be the only one who writes it.

    Args:
        path: file to write.
        fingerprint: of the cache that it belongs to.
        keys: of the images.
        records: of the images, in the keys' order.
        layout: of the cache.

    Raises:
        DiskError: the disk is full, or the place cannot be written; nothing is left at `path`.
    """
    parts: dict[str, torch.Tensor] = {}
    moved, whole, largest = 0.0, 0.0, 0.0
    for name in layout.channels:
        rows = [record.levels[name] for record in records]
        stored = [_stored(row, layout.stored) for row in rows]
        parts[name] = torch.cat([codes for codes, _ in stored])
        if layout.stored == "int8":
            parts[_SCALES + name] = torch.stack([scale for _, scale in stored])
        for row, (codes, scale) in zip(rows, stored, strict=True):
            difference = (codes.float() * scale - row.float()).double()
            moved, whole = (
                moved + float(difference.square().sum().detach()),
                whole + float(row.detach().double().square().sum()),
            )
            largest = max(largest, float(difference.abs().max()) if row.numel() else 0.0)
    recorded = {
        "drift": asdict(Drift(largest, (moved / whole) ** 0.5 if whole else 0.0)),
        "keys": list(keys),
        "tokens": {name: [len(record.levels[name]) for record in records] for name in layout.channels},
        "facts": [{name: list(value) for name, value in record.facts.items()} for record in records],
        "processor_keys": [{name: list(value) for name, value in record.keys.items()} for record in records],
    }
    meta = {"fingerprint": fingerprint, **recorded, "sha256": _digest(_bytes_of(parts), recorded)}
    write_bytes(path, save(parts, metadata={META: json.dumps(meta)}), fix="free space, or change data.cache")


def open_ragged(path: Path, fingerprint: str, layout: RaggedLayout, thorough: bool = False) -> RaggedShard:
    """Maps a shard, and checks header, lengths, shapes and size.

    Args:
        path: the file.
        fingerprint: of the cache that it must belong to.
        layout: of the cache.
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
        tokens = {name: np.asarray(meta["tokens"][name], np.int64) for name in layout.channels}
        facts, processor_keys = (_facts(meta[name]) for name in ("facts", "processor_keys"))
        recorded = {name: meta[name] for name in ("drift", "keys", "tokens", "facts", "processor_keys")}
        sha256, owner = meta["sha256"], meta["fingerprint"]
    except DataError as error:
        raise VerificationError(error.message, where=str(path), fix=FIX) from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise VerificationError("the header is damaged", where=str(path), fix=FIX) from error
    lengths = [len(facts), len(processor_keys), *(len(counts) for counts in tokens.values())]
    if any(length != len(keys) for length in lengths) or any(
        (counts < 0).any() for counts in tokens.values()
    ):
        raise VerificationError("its images and their lengths differ", where=str(path), fix=FIX)
    stored = {part.key: (part.dtype, list(part.shape)) for part in file.tensors}
    wanted: dict[str, tuple[str, list[int]]] = {}
    for name, channels in layout.channels.items():
        wanted[name] = (NAMES[layout.stored], [int(tokens[name].sum()), channels])
        if layout.stored == "int8":
            wanted[_SCALES + name] = ("F32", [len(keys), channels])
    if owner != fingerprint or stored != wanted:
        raise VerificationError("it holds other features", where=str(path), fix=FIX)
    raw = np.asarray(np.memmap(path, mode="r"))
    bodies = {part.key: raw[part.begin : part.end] for part in file.tensors}
    if thorough and _digest(bodies, recorded) != sha256:
        raise VerificationError("its bytes are not those that were written", where=str(path), fix=FIX)
    return RaggedShard(
        keys,
        drift,
        {
            name: bodies[name].reshape(int(tokens[name].sum()), channels * STORED[layout.stored].itemsize)
            for name, channels in layout.channels.items()
        },
        {name: np.concatenate([[0], np.cumsum(counts)]) for name, counts in tokens.items()},
        facts,
        processor_keys,
        {
            name: bodies[_SCALES + name].view(np.float32).reshape(len(keys), channels)
            for name, channels in layout.channels.items()
            if layout.stored == "int8"
        },
    )


def gather_ragged(positions: Sequence[tuple[RaggedShard, int]], layout: RaggedLayout) -> RaggedFeatures:
    """Copies each image once from the disk's pages into one new tensor a level, in the stored dtype.

    Args:
        positions: shard, and row within it, of each image.
        layout: of the cache.

    Returns:
        The images' features.
    """
    dtype = STORED[layout.stored]
    levels, tokens = {}, {}
    for name, channels in layout.channels.items():
        spans = [(shard, *shard.begins[name][row : row + 2].tolist()) for shard, row in positions]
        tokens[name] = tuple(end - begin for _, begin, end in spans)
        level = torch.empty((sum(tokens[name]), channels * dtype.itemsize), dtype=torch.uint8)
        rows, start = level.numpy(), 0
        for shard, begin, end in spans:
            rows[start : start + end - begin] = shard.levels[name][begin:end]
            start += end - begin
        levels[name] = level.view(dtype)
    scales = {
        name: torch.from_numpy(np.stack([shard.scales[name][row] for shard, row in positions]))
        for name in (layout.channels if layout.stored == "int8" else ())
    }
    facts = tuple(shard.facts[row] for shard, row in positions)
    keys = tuple(shard.processor_keys[row] for shard, row in positions)
    return RaggedFeatures(levels, tokens, facts, keys, scales)


def _stored(row: torch.Tensor, stored: str) -> tuple[torch.Tensor, torch.Tensor]:
    """One image's level as it is stored, and what it is multiplied with: as in shards of one size."""
    if stored != "int8":
        return row.to(STORED[stored]), torch.ones(1)
    values = row.float()
    scale = values.abs().amax(0) / 127 if len(values) else values.new_zeros(values.shape[1])
    codes = (values / scale.clamp(min=torch.finfo(torch.float32).tiny)).round()
    return codes.clamp(-127, 127).to(torch.int8), scale


def _facts(rows: Sequence[Mapping[str, Sequence[int]]]) -> tuple[Facts, ...]:
    return tuple({str(name): tuple(map(int, value)) for name, value in row.items()} for row in rows)


def _bytes_of(parts: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: part.contiguous().reshape(-1).view(torch.uint8).numpy() for name, part in parts.items()}


def _digest(bodies: Mapping[str, np.ndarray[Any, Any]], facts: Mapping[str, Any]) -> str:
    """Of all numbers, and of what the header says of them."""
    written = np.frombuffer(json.dumps(facts, sort_keys=True).encode(), np.uint8)
    return digest_of([*(bodies[name] for name in sorted(bodies)), written])
