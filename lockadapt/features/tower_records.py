"""Remembers of a stock folder's tower what a later run must know to do without it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lockadapt.architectures import layout_of
from lockadapt.architectures.absent_tower import TowerRecord, files_digest
from lockadapt.architectures.base import unwrap_model
from lockadapt.features.identity import tower_identity
from lockadapt.files import write_json
from lockadapt.tuning.base_identity import tower_component
from lockadapt.tuning.locks import tensor_digest

RECORDS = "towers"


def remember_tower(cache: Path, model: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """Writes a record into the cache, under the digest of the files that the tower was loaded from.

    Args:
        cache: the feature cache's folder.
        model: loaded from `folder`, its tower in place.
        folder: a local stock folder.
        dtype: that it was loaded in.
    """
    name = str(dtype).removeprefix("torch.")
    files = files_digest(folder, name)
    target = _file(cache, files)
    if target.is_file():
        return
    path = layout_of(model).tower
    tower: nn.Module = unwrap_model(model).get_submodule(path)
    tensors = {**dict(tower.named_parameters()), **dict(tower.named_buffers())}
    digests = {f"{path}.{name}": tensor_digest(tensor) for name, tensor in tensors.items()}
    count = sum(parameter.numel() for parameter in tower.parameters())
    base = asdict(tower_component(model))
    record = TowerRecord(str(folder), files, name, count, digests, tower_identity(model), base)
    write_json(target, asdict(record))


def recall_tower(cache: Path, folder: Path, dtype: torch.dtype) -> TowerRecord | None:
    """The record for the files in `folder`, wherever they lay when it was written; None if there is none."""
    name = str(dtype).removeprefix("torch.")
    files = files_digest(folder, name)
    try:
        values: dict[str, Any] = json.loads(_file(cache, files).read_text(encoding="utf-8"))
        record = TowerRecord(**values)
    except (OSError, ValueError, TypeError):
        return None
    return replace(record, folder=str(folder)) if record.files == files else None


def _file(cache: Path, files: str) -> Path:
    return cache.expanduser() / RECORDS / f"{files}.json"
