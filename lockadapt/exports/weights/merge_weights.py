"""Merges base and adapters with bounded memory: plans everything from headers, refuses, then writes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lockadapt.errors import AdapterError, DiskError, VerificationError
from lockadapt.exports.weights.adapter import as_matrix, base_copies, read_adapter
from lockadapt.exports.weights.changes import LowRank, WeightUpdate, Whole, blended, on_device
from lockadapt.exports.weights.edits import GPU_PIECE_BYTES, PIECE_BYTES, TensorWrite, require_fit
from lockadapt.exports.weights.names import ExpertPart, Names, meta_model, read_names, stored_values
from lockadapt.exports.weights.requantized import QuantizationRoundTrip
from lockadapt.exports.weights.shards import INDEX, Layout, read_layout
from lockadapt.exports.weights.stream import cores, write_shards
from lockadapt.files import write_json
from lockadapt.models.safetensors_file import Shard, StoredTensor, header_bytes
from lockadapt.models.sources import some
from lockadapt.tuning.adapter_keys import require_copy
from lockadapt.tuning.base_identity import BaseIdentity

GPU_THREADS = 8
"""Threads that read, feed a GPU and write."""


@dataclass(frozen=True)
class Weighted:
    """A PEFT folder (or none), its weight, and by stock name what was trained beside it, as a projector.

    Attributes:
        identity: the base that it was trained on; None where its folder does not say.
    """

    folder: Path | None
    weight: float = 1.0
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    identity: BaseIdentity | None = None


@dataclass(frozen=True)
class WeightsReport:
    """The tensors of which values were computed, the tensors copied byte for byte, and all bytes written."""

    changed: tuple[str, ...]
    copied: int
    bytes: int


def merge_weights(
    base: Path,
    folder: Path,
    adapters: Sequence[Weighted] = (),
    replaced: Mapping[str, Tensor] | None = None,
    *,
    requantized: Mapping[str, QuantizationRoundTrip] | None = None,
    rename: Mapping[str, str] | None = None,
    threads: int | None = None,
) -> WeightsReport:
    """Writes the base's shards, adapters folded in, `round_once(fp32(W) + scale * B A)`, into a folder.

    Memory is that of the adapters and a few megabytes for each thread, whatever the size of the base. Shards,
    order, metadata and dtypes stay those of the base. The work is done on a GPU where there is one.

    Args:
        base: stock folder with safetensors.
        folder: exists; gets nothing but weights and their index.
        adapters: added in this order.
        replaced: by stock name, trained tensors that take the place of the base's, such as the projector's.
        requantized: by stock name, matrices that were trained on in quantized form.
        rename: key on the disk -> key to write; keys that it leaves out stay.
        threads: default: as many as there are cores.

    Returns:
        How many tensors were computed and copied, and all bytes.

    Raises:
        DataError, SafetyError, SetupError: see `read_layout` and `read_adapter`.
        AdapterError: an adapter is of an unknown kind, or cannot be stacked, or lies on a matrix that is
            shared.
        VerificationError: names or shapes of base, adapter and stock class do not fit one another.
        DiskError: there is no room.
    """
    changes = all_changes(base, adapters, replaced or {})
    return write_changes(base, folder, changes, requantized=requantized, rename=rename, threads=threads)


def write_changes(
    base: Path,
    folder: Path,
    changes: Mapping[str, Sequence[WeightUpdate]],
    *,
    requantized: Mapping[str, QuantizationRoundTrip] | None = None,
    rename: Mapping[str, str] | None = None,
    threads: int | None = None,
) -> WeightsReport:
    """Writes the base's shards with changes by stock name, as `merge_weights` does."""
    layout = read_layout(base)
    stored_at = layout.by_key()
    model = meta_model(base)
    names = read_names(model, stored_at, str(base))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    keys = {key: (rename or {}).get(key, key) for key in stored_at}
    if len(set(keys.values())) != len(keys):
        raise VerificationError("two tensors would get one name", where=str(base))
    steps: dict[StoredTensor, tuple[Sequence[WeightUpdate], QuantizationRoundTrip | None]] = {}
    for name in {**changes, **(requantized or {})}:
        held, updates = names.keys_of(name), changes.get(name, [])
        if not held and (parts := names.experts_of(name)):
            for key, update in _by_expert(name, updates, parts, stored_at, shapes[name]).items():
                steps[stored_at[key][1]] = (update, None)
            continue
        tensors = [stored_at[key][1] for key in held]
        if not held and (part := names.fused.get(name)):
            tensors = [_part(stored_at[part.key][1], names)[name]]
        _require_free(name, bool(tensors), names, changes, str(base))
        for stored in tensors:
            require_fit(stored, updates, shapes[name])
            steps[stored] = (updates, (requantized or {}).get(name))
    _require_room(layout, folder)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    piece_bytes, most = (GPU_PIECE_BYTES, min(GPU_THREADS, cores())) if on_gpu else (PIECE_BYTES, cores())
    shifts = {shard.path: len(header_bytes(shard, keys)) - shard.data_start for shard in layout.shards}
    edits: dict[str, list[TensorWrite]] = {}
    for stored, (updates, requantize) in sorted(steps.items(), key=lambda step: step[0].begin):
        offset = stored.begin + shifts[stored_at[stored.key][0].path]
        write = TensorWrite(stored, offset, on_device(updates, device), requantize, piece_bytes)
        edits.setdefault(stored.key, []).append(write)
    write_shards(layout, folder, edits, keys, device, threads or most)
    if layout.index is not None:
        _write_index(layout, keys, folder / INDEX)
    size = sum(stored.end - stored.begin for _, stored in stored_at.values())
    return WeightsReport(tuple(sorted(keys[key] for key in edits)), len(stored_at) - len(edits), size)


def all_changes(
    base: Path, adapters: Sequence[Weighted], replaced: Mapping[str, Tensor]
) -> dict[str, list[WeightUpdate]]:
    """Collects by stock name what adapters and replaced tensors do; errors as `merge_weights`."""
    gathered: dict[str, list[WeightUpdate]] = {name: [Whole(as_matrix(t))] for name, t in replaced.items()}
    for adapter in adapters:
        if adapter.folder is not None:
            for name, updates in read_adapter(meta_model(base), adapter.folder, adapter.weight).items():
                gathered.setdefault(name, []).extend(updates)
            _compare_copies(base, adapter.folder)
        for name, tensor in adapter.parts.items():
            gathered.setdefault(name, []).append(Whole(as_matrix(tensor), adapter.weight))
    for name, updates in gathered.items():
        sums = [update for update in updates if isinstance(update, LowRank)]
        if sums and len(sums) < len(updates):
            raise AdapterError(
                "gets a low-rank sum and trained values of its own",
                where=name,
                fix="merge these adapters one after the other, the second with --force-base",
            )
        if len(sums) > 1 and any(update.magnitude is not None for update in sums):
            raise AdapterError(
                "DoRA's magnitudes belong to one adapter's whole sum, and another adapter adds to it",
                where=name,
                fix="merge a DoRA adapter alone",
            )
    return {name: blended(updates) for name, updates in gathered.items()}


def _compare_copies(base: Path, adapter: Path) -> None:
    """Requires layers of the base that an adapter brings to be those of this base."""
    copies = base_copies(adapter)
    if not copies:
        return
    stored_at = read_layout(base).by_key()
    names = read_names(meta_model(base), stored_at, str(base))
    for name, copy in copies.items():
        for own in stored_values(names, stored_at, name):
            require_copy(name, copy, own, str(adapter))


def _part(stored: StoredTensor, names: Names) -> dict[str, StoredTensor]:
    """The parameters that one stored tensor holds, each as the tensor of its rows."""
    parts = names.held_by(stored.key)
    rows = max(part.last for part in parts.values())
    if not stored.shape or stored.shape[0] != rows:
        raise VerificationError(
            f"has the shape {stored.shape}, and its parts in the model class {rows} rows",
            where=stored.key,
            fix="config.json and the weights do not belong together",
        )
    return {name: stored.rows(part.first, part.last) for name, part in parts.items()}


def _require_free(
    name: str, held: bool, names: Names, changes: Mapping[str, Sequence[WeightUpdate]], where: str
) -> None:
    """Requires changed parameters to lie in the folder as they are, and shared ones to stay equal."""
    updates = changes.get(name, [])
    if not held:
        reason = "is stored in parts or in another form" if names.converted else "is not in the folder"
        raise VerificationError(
            f"{name} {reason}",
            where=where,
            fix="save the base with today's Transformers first, save_pretrained(save_original_format=False)",
        )
    shared = name in names.ties or name in names.ties.values()
    if shared and any(isinstance(update, LowRank) for update in updates):
        raise AdapterError(
            f"{name} is tied to {some(names.group(name) - {name})}: a merged sum would change both",
            where=where,
            fix="train with ensure_weight_tying, leave it out of the targets, or untie the base first",
        )
    trained = [update.tensor for update in updates if isinstance(update, Whole)]
    for other in names.group(name) - {name} if trained else ():
        copies = [update.tensor for update in changes.get(other, []) if isinstance(update, Whole)]
        if not (copies and torch.equal(copies[0], trained[0])):
            raise AdapterError(
                f"{name} was trained by itself and is tied to {other}, of which a folder has one tensor",
                where=where,
                fix="untie the base first (tie_word_embeddings: false, both stored), or train both alike",
            )


def _by_expert(
    name: str,
    updates: Sequence[WeightUpdate],
    parts: Mapping[str, ExpertPart],
    stored_at: Mapping[str, tuple[Shard, StoredTensor]],
    shape: tuple[int, ...],
) -> dict[str, list[WeightUpdate]]:
    """Deals sums on a tensor of stacked experts out to the keys that hold one expert's matrix each."""
    rows = {key: stored_at[key][1].shape[0] for key in parts}
    dealt: dict[str, list[WeightUpdate]] = {}
    covered = 0
    for key, part in parts.items():
        first = sum(rows[earlier] for earlier in part.before)
        stored = stored_at[key][1]
        if part.expert >= shape[0] or first + rows[key] > shape[1]:
            raise VerificationError(
                f"has more experts or rows than {name}, {shape}",
                where=key,
                fix="config.json and the weights do not belong together",
            )
        require_fit(stored, updates, (rows[key], shape[2]))
        covered += rows[key]
        dealt[key] = []
        for update in updates:
            if not isinstance(update, LowRank):
                raise AdapterError(
                    f"{name} is stored expert by expert, and only low-rank sums are dealt out to experts",
                    where=key,
                    fix="save the base with today's Transformers first, "
                    "save_pretrained(save_original_format=False)",
                )
            dealt[key].append(update.expert(part.expert, first, first + rows[key]))
    if covered != shape[0] * shape[1]:
        raise VerificationError(
            f"the folder holds {covered} of the {shape[0] * shape[1]} rows of {name}",
            where=name,
            fix="config.json and the weights do not belong together",
        )
    return dealt


def _require_room(layout: Layout, folder: Path) -> None:
    wanted = sum(shard.size for shard in layout.shards)
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise DiskError(
            f"{wanted >> 20} MiB are to be written and {free >> 20} MiB are free",
            where=str(folder),
            fix="free space, or choose another --output",
        )


def _write_index(layout: Layout, keys: Mapping[str, str], file: Path) -> None:
    assert layout.index is not None
    stored_at = layout.by_key()
    metadata: dict[str, Any] = dict(layout.index.get("metadata") or {})
    metadata["total_size"] = sum(stored.end - stored.begin for _, stored in stored_at.values())
    weight_map = {keys[key]: layout.index["weight_map"][key] for key in layout.index["weight_map"]}
    write_json(file, {**layout.index, "metadata": metadata, "weight_map": weight_map})
