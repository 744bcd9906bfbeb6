"""Checkpoints without pickle: tensors in safetensors, everything else in JSON, a manifest written last."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from lockadapt import processes
from lockadapt.errors import VerificationError
from lockadapt.files import remove_folder, sha256_of, sync, write_json, write_tensors
from lockadapt.training.shared_random import STRIDE
from lockadapt.training.stored_state import damaged, reading_checkpoint, require_like
from lockadapt.tuning.sharding import is_shared, own_part, whole

WEIGHTS, OPTIMIZER, RNG, MANIFEST = "trainable.safetensors", "optimizer", "rng", "manifest.json"
SMALL = 4096
"""8-bit optimisers keep moments of parameters with fewer values in float32."""
FINISHED = "finished"
"""The folder beside checkpoints that holds how a stage ended."""


def save_trainable(model: nn.Module, folder: Path) -> None:
    """Writes every tensor that trains, whole, by its full name; all processes call, the first one writes."""
    tensors = {name: whole(p).cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    if processes.is_first():
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})


def load_trainable(model: nn.Module, folder: Path) -> None:
    """Reads them back.

    Args:
        model: the one that trains.
        folder: of the checkpoint.

    Raises:
        VerificationError: the checkpoint's tensors are not exactly those that train.
    """
    with reading_checkpoint(folder):
        saved = load_file(folder / WEIGHTS)
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if set(saved) != set(wanted):
        missing, extra = sorted(set(wanted) - set(saved)), sorted(set(saved) - set(wanted))
        raise VerificationError(
            f"the checkpoint lacks {missing[:3]} and has {extra[:3]} beyond what trains",
            where=str(folder),
            fix="resume with the recipe that wrote it",
        )
    with reading_checkpoint(folder), torch.no_grad():
        for name, parameter in wanted.items():
            if saved[name].shape != parameter.shape or not bool(saved[name].isfinite().all()):
                raise damaged(folder, f"{name} is not finite, or of another shape")
            parameter.copy_(own_part(saved[name], parameter))


def save_optimizer(optimizer: Any, scheduler: Any, folder: Path) -> None:
    """Writes optimiser moments, whole, settings and the scheduler's counters; as `save_trainable`."""
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, Any] = {}
    for index, slots in state["state"].items():
        _flatten(str(index), slots, tensors, plain)
    if not processes.is_first():
        return
    write_tensors(folder / f"{OPTIMIZER}.safetensors", tensors, {"format": "pt"})
    scheduler_state = {k: v for k, v in scheduler.state_dict().items() if k != "lr_lambdas"}
    write_json(
        folder / f"{OPTIMIZER}.json",
        {"param_groups": state["param_groups"], "plain": plain, "scheduler": scheduler_state},
    )


def load_optimizer(optimizer: Any, scheduler: Any, folder: Path) -> None:
    """Reads optimiser and scheduler back, bit for bit.

    Args:
        optimizer: of the same parameters.
        scheduler: the optimizer's.
        folder: of the checkpoint.

    Raises:
        VerificationError: the checkpoint is damaged.
    """
    with reading_checkpoint(folder):
        _load_optimizer(optimizer, scheduler, folder)


def _load_optimizer(optimizer: Any, scheduler: Any, folder: Path) -> None:
    tensors = load_file(folder / f"{OPTIMIZER}.safetensors")
    other = json.loads((folder / f"{OPTIMIZER}.json").read_text())
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *other["plain"].items()]:
        index, *path, slot = key.split(".")
        slots = state.setdefault(int(index), {})
        for name in path:
            slots = slots.setdefault(name, {})
        slots[slot] = value
    groups = [
        {**group, "betas": tuple(group["betas"])} if "betas" in group else group
        for group in other["param_groups"]
    ]
    require_like(optimizer.state_dict()["param_groups"], groups, "param_groups")
    require_like(
        {k: v for k, v in scheduler.state_dict().items() if k != "lr_lambdas"},
        other["scheduler"],
        "scheduler",
    )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    _require_alike(state, parameters)
    for number, slots in state.items():
        parameter = parameters[number]
        if is_shared(parameter):
            state[number] = {
                slot: own_part(value, parameter) if value.shape == parameter.shape else value
                for slot, value in slots.items()
            }
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    scheduler.load_state_dict({**scheduler.state_dict(), **other["scheduler"]})


def _require_alike(state: Mapping[int, Mapping[str, Any]], parameters: Sequence[torch.Tensor]) -> None:
    """Requires that optimisers keep the same of parameters of one kind, and tensors that fit them.

    Large and small ones differ in 8-bit optimisers, matrices and vectors in those that factorize.
    """
    kinds: dict[tuple[int, bool], tuple[int, set[str]]] = {}
    for number, slots in sorted(state.items()):
        parameter = parameters[number]
        kind = parameter.dim(), parameter.numel() >= SMALL
        first, names = kinds.setdefault(kind, (number, set(slots)))
        if names != set(slots):
            odd = sorted(names ^ set(slots))[0]
            raise ValueError(f"{odd!r} is kept of only one of the parameters {first} and {number}")
        for name, value in slots.items():
            shaped = torch.is_tensor(value) and value.numel() == parameter.numel() > 1
            if shaped and value.shape != parameter.shape:
                raise ValueError(f"{name!r} of parameter {number} has the shape {list(value.shape)}")


def _flatten(prefix: str, value: Any, tensors: dict[str, torch.Tensor], plain: dict[str, Any]) -> None:
    """Names what an optimizer keeps by its path; bitsandbytes nests, and shares tables between parameters."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _flatten(f"{prefix}.{name}", inner, tensors, plain)
    elif torch.is_tensor(value):
        tensors[prefix] = whole(value).cpu().contiguous().clone()
    else:
        plain[prefix] = value


def save_rng(folder: Path, process: int = 0, processes: int = 1, shared: torch.Tensor | None = None) -> None:
    """Writes the state of Python's, NumPy's and torch's generators, the GPU's too.

    Args:
        folder: of the checkpoint.
        process: whose generators they are.
        processes: how many train together.
        shared: the stream that all of them draw from alike, uint8; None: there is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    version, words, gauss = random.getstate()
    state: Any = np.random.get_state()
    kind, keys, position, has_gauss, cached = state
    tensors = {"torch": torch.random.get_rng_state(), "numpy": torch.from_numpy(keys.astype(np.int64))}
    if shared is not None:
        tensors["shared"] = shared
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.random.get_rng_state()
    write_tensors(folder / f"{RNG}-{process}.safetensors", tensors)
    other = {"python": [version, list(words), gauss], "numpy": [kind, position, has_gauss, cached]}
    write_json(folder / f"{RNG}-{process}.json", {**other, "processes": processes})


def load_rng(folder: Path, process: int = 0, processes: int = 1) -> torch.Tensor | None:
    """Puts all generators back to where they were.

    A checkpoint of another number of processes has the first one's generators for all; those behind the first
    go on from seeds of their own.

    Args:
        folder: of the checkpoint.
        process: which one this is.
        processes: how many train together now.

    Returns:
        The state of the stream that all processes draw from alike; None where one is alone.

    Raises:
        VerificationError: the checkpoint is damaged.
    """
    with reading_checkpoint(folder):
        return _load_rng(folder, process, processes)


def _load_rng(folder: Path, process: int, processes: int) -> torch.Tensor | None:
    before = json.loads((folder / f"{RNG}-0.json").read_text()).get("processes", 1)
    number = process if before == processes else 0
    tensors = load_file(folder / f"{RNG}-{number}.safetensors")
    other = json.loads((folder / f"{RNG}-{number}.json").read_text())
    version, words, gauss = other["python"]
    random.setstate((version, tuple(words), gauss))
    kind, position, has_gauss, cached = other["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    shared = tensors.get("shared", tensors["torch"])
    torch.random.set_rng_state(shared if processes == 1 else tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.random.set_rng_state(tensors["cuda"])
    if before != processes and process:
        torch.manual_seed(int(torch.randint(STRIDE, ())) + STRIDE * process)
    return shared if processes > 1 else None


def seal(folder: Path) -> None:
    """Writes the manifest (size and SHA-256 of every file): a folder without it is not a checkpoint."""
    written = [p for p in sorted(folder.iterdir()) if p.is_file()]
    for file in written:
        sync(file)
    files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in written}
    write_json(folder / MANIFEST, {"files": files})
    sync(folder)


def is_complete(folder: Path) -> bool:
    """Whether a checkpoint folder is sealed and its files are what the manifest says."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        return all(
            (folder / name).stat().st_size == entry["bytes"] and sha256_of(folder / name) == entry["sha256"]
            for name, entry in files.items()
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint below a folder, if there is one."""
    return next((p for p in _by_step(folder) if is_complete(p)), None)


def remove_old(folder: Path, limit: int | None, best: str | None) -> None:
    """Removes all but the newest checkpoints below a folder, once the newest is sealed.

    Args:
        folder: of the stage's checkpoints.
        limit: how many stay, the best among them; None or 0: all.
        best: path of the checkpoint with the best validation loss, which always stays; None: there is none.

    Raises:
        DiskError: one cannot be moved.
    """
    newest_first = _by_step(folder)
    if not limit or len(newest_first) <= limit:
        return
    kept = {newest_first[0].name, *([Path(best).name] if best else [])}
    for checkpoint in newest_first[1:]:
        if checkpoint.name in kept:
            continue
        if len(kept) < limit:
            kept.add(checkpoint.name)
        else:
            remove_folder(checkpoint)


def remove_unfinished(folder: Path) -> None:
    """Removes checkpoints that a killed process did not seal, of all stages of a run.

    Args:
        folder: which holds a folder of checkpoints for each stage.

    Raises:
        DiskError: one cannot be moved.
    """
    for checkpoint in (*folder.glob("*/checkpoint-*"), *folder.glob(f"*/{FINISHED}")):
        if not (checkpoint / MANIFEST).is_file():
            remove_folder(checkpoint)


def _by_step(folder: Path) -> list[Path]:
    """The checkpoints below a folder, complete or not, the newest first."""
    checkpoints = [p for p in folder.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(checkpoints, key=lambda p: int(p.name.removeprefix("checkpoint-")), reverse=True)
