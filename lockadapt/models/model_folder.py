"""Checks what a model folder claims before a library acts on it: files outside, code, absurd sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic_core import from_json

from lockadapt.errors import DataError, SafetyError, SetupError
from lockadapt.models.safetensors_file import AGAIN, read_shard

MAX_JSON = 64 << 20
"""Bytes of a config or an index; the largest indexes of the Hub have about 10 MB."""

DEEP = 256
"""Layers from which on a config must be borne out by as many tensors, which costs reading headers."""


def check_model_folder(folder: Path, what: str) -> None:
    """Checks config.json and the shard index of a folder before Transformers follows them.

    Args:
        folder: holds config.json; weights need not be there.
        what: names it in messages.

    Raises:
        SetupError: a file is no JSON object, or the config describes more layers than there are tensors.
        SafetyError: the index names files outside the folder, or the config asks for code of the Hub.
    """
    config = _json_object(folder / "config.json", what)
    for key, value in _leaves(config):
        # `org/name` in place of `sdpa` makes Transformers download a compiled kernel and load it.
        if (
            key.removesuffix("_internal").endswith("implementation")
            and isinstance(value, str)
            and "/" in value
        ):
            raise SafetyError(
                f"the {what}'s config.json wants code from the Hub to be run: {key} is {value!r}",
                where=str(folder),
                fix=f"remove {key} from config.json",
            )
    names: set[str] = set()
    for index in sorted(folder.glob("*.safetensors.index.json")):
        table = _json_object(index, what).get("weight_map")
        if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
            raise SetupError("`weight_map` is no table of file names", where=str(index), fix=AGAIN)
        names |= set(table.values())
        outside = next((name for name in sorted(names) if _leads_out(name)), None)
        if outside is not None:
            raise SafetyError(
                f"names a file outside of its folder: {outside!r}",
                where=str(index),
                fix="download the folder again from where you trust it",
            )
    layers = max((count for key, value in _leaves(config) for count in _layers(key, value)), default=0)
    if layers > DEEP:
        _check_depth(folder, layers, what)


def check_described_size(folder: Path, build: Callable[[], Any], what: str) -> None:
    """Refuses a config of a far larger model than the folder's weights, before memory is taken for it.

    Transformers makes tensors of the described shapes for all that the weights lack.

    Args:
        folder: of the model.
        build: makes the model of its config; called on torch's meta device, where tensors take no memory.
        what: names it in messages.

    Raises:
        SetupError: the config describes more than a few times the parameters that the folder holds, or
            absurdly large buffers.
    """
    try:
        shards = [read_shard(file) for file in sorted(folder.glob("*.safetensors"))]
    except DataError:
        return  # whoever loads it says what is damaged
    stored = sum(math.prod(tensor.shape) for shard in shards for tensor in shard.tensors)
    if not stored:
        return
    with torch.device("meta"):
        model = build()
    described = {
        "parameters": (sum(parameter.numel() for parameter in model.parameters()), SLACK),
        "values in buffers": (sum(buffer.numel() for buffer in model.buffers()), BUFFER_SLACK),
    }
    for kind, (count, slack) in described.items():
        if count > LARGER * stored + slack:
            raise SetupError(
                f"the {what}'s config.json describes {count:,} {kind}, its weights are {stored:,}",
                where=str(folder),
                fix="use the config that belongs to the weights",
            )


LARGER, SLACK, BUFFER_SLACK = 4, 10_000_000, 100_000_000
"""So many times as large, and so many parameters and values in buffers more, may a model be than its file:
weights are stored packed, heads that are not used are left out, masks and rotary tables are not stored."""


def _check_depth(folder: Path, layers: int, what: str) -> None:
    """Refuses a config that would have a library build modules for hours."""
    tensors = sum(len(read_shard(file).tensors) for file in sorted(folder.glob("*.safetensors")))
    if layers > max(tensors, DEEP):
        raise SetupError(
            f"the {what}'s config.json describes {layers:,} layers, its weights are {tensors:,} tensors",
            where=str(folder),
            fix="use the config that belongs to the weights",
        )


def _leads_out(name: str) -> bool:
    return name in ("", ".", "..") or "\0" in name or any(sign in name for sign in "/\\")


def _layers(key: str, value: Any) -> Iterator[int]:
    """Counts of layers, as configs of all families call them."""
    if key.endswith(("layers", "n_layer", "depth", "depths")):
        values = value if isinstance(value, list) else [value]
        yield from (index for index in values if isinstance(index, int))


def _leaves(table: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield key, value


def _json_object(file: Path, what: str) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_JSON:
            raise ValueError(f"it has more than {MAX_JSON >> 20} MiB")
        values = from_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise SetupError(
            f"the {what} cannot be loaded: {file.name} is damaged: {error}", where=str(file.parent), fix=AGAIN
        ) from error
    if not isinstance(values, dict):
        raise SetupError(
            f"the {what} cannot be loaded: {file.name} holds no JSON object",
            where=str(file.parent),
            fix=AGAIN,
        )
    return values
