"""Where a stock folder's weights lie in its files: every header and the index checked, nothing loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from lockadapt.errors import DataError, SafetyError, SetupError
from lockadapt.models.safetensors_file import AGAIN, Shard, StoredTensor, parse_json, read_shard

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Layout:
    """All weights of a folder.

    Attributes:
        index: what `model.safetensors.index.json` holds, or None where there is one file.
    """

    folder: Path
    shards: tuple[Shard, ...]
    index: Mapping[str, Any] | None

    def by_key(self) -> dict[str, tuple[Shard, StoredTensor]]:
        """The tensors by key, over all shards."""
        return {stored.key: (shard, stored) for shard in self.shards for stored in shard.tensors}


def read_layout(folder: Path) -> Layout:
    """Reads the headers of a folder's weights: one file, or shards with their index, as Transformers does.

    Args:
        folder: with safetensors.

    Returns:
        Shards, and where each tensor lies.

    Raises:
        SetupError: there are no safetensors.
        DataError: a file is truncated, its header broken, tensors overlap or leave a hole, a shard is
            missing, a key is in another shard than the index says or in two, or in the index or a shard
            alone.
        SafetyError: the index names a file outside the folder.
    """
    if (folder / SINGLE).is_file():
        return Layout(folder, (read_shard(folder / SINGLE),), None)
    file = folder / INDEX
    if not file.is_file():
        raise SetupError(
            f"holds neither {SINGLE} nor {INDEX}",
            where=str(folder),
            fix="name a folder with safetensors weights; convert others with save_pretrained",
        )
    index = parse_json(file.read_bytes(), str(file))
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise DataError("has no weight_map", where=str(file), fix=AGAIN)
    for key, name in weight_map.items():
        _require_plain(name, f"{file}: {key}")
    shards = tuple(_shard_of_index(folder, name, file) for name in dict.fromkeys(weight_map.values()))
    file_of: dict[str, str] = {}
    for shard in shards:
        for stored in shard.tensors:
            if stored.key in file_of:
                raise DataError(
                    f"{stored.key} is in {file_of[stored.key]} as well", where=str(shard.path), fix=AGAIN
                )
            file_of[stored.key] = shard.path.name
    for key in sorted(file_of.keys() | weight_map.keys()):
        listed, there = weight_map.get(key), file_of.get(key)
        if listed != there:
            problem = (
                f"{key} is said to be in {listed}, and is in {there or 'none of the shards'}"
                if listed
                else f"{key}, which is in {there}, is missing"
            )
            raise DataError(problem, where=str(file), fix=AGAIN)
    return Layout(folder, shards, index)


def _shard_of_index(folder: Path, name: str, index: Path) -> Shard:
    path = folder / name
    if not path.is_file():
        raise DataError(f"the shard {name} is missing", where=str(index), fix=AGAIN)
    # A snapshot in the Hub's cache is made of links into its own blobs: those are fine, as the name itself is
    # plain.
    return read_shard(path)


def _require_plain(name: Any, where: str) -> None:
    """A shard is a file in the folder itself, by POSIX's rules and by Windows'."""
    plain = isinstance(name, str) and name.endswith(".safetensors") and "\0" not in name
    plain = plain and name not in (os.curdir, os.pardir)
    if not plain or PurePosixPath(name).name != name or PureWindowsPath(name).name != name:
        raise SafetyError(
            f"{name!r} is not the plain name of a safetensors file in the folder", where=where, fix=AGAIN
        )
