"""Compares a run folder with the run's record: no run whose files or base are others is ever opened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from lockadapt.data.paths import PICKLE_SUFFIXES
from lockadapt.errors import DataError, SafetyError, VerificationError
from lockadapt.files import sha256_of
from lockadapt.models.folder_digest import CONFIGS, WHOLE, folder_digest
from lockadapt.models.sources import HUB_ID
from lockadapt.runs.artifacts import ADAPTER, ADAPTER_CONFIG, ADAPTER_WEIGHTS, PART_FILES, PROCESSOR
from lockadapt.runs.record import RunRecord
from lockadapt.runs.run_folder import BASE, base_of, fingerprint
from lockadapt.tuning.adapter_config import check_header, read_adapter_config
from lockadapt.tuning.base_identity import BaseIdentity, base_identity, compare
from lockadapt.tuning.locks import tensor_digest

_AGAIN = "copy the run folder again, or train again"
_BASE_AGAIN = "restore the base that the run was trained on, or train again"


def check_run(folder: Path, record: RunRecord, query_tokens: int) -> Mapping[str, Any] | None:
    """Compares a folder's files, what it trained and its base with what the run recorded.

    Args:
        folder: of the run.
        record: its `run.json`. What older versions did not record is not compared.
        query_tokens: that the run trained; the adapter holds them.

    Returns:
        `adapter_config.json` of the run's adapter; None where it trained neither LoRA nor query tokens.

    Raises:
        SafetyError: there is pickle.
        VerificationError: a file is missing, damaged, of another run or not the run's at all; a trained
            tensor is not finite; the base's files are others.
    """
    refuse_pickle_files(folder)
    config = check_files(folder, record, query_tokens)
    if record.artifacts is None:
        artifact_digests(folder)  # finite and undamaged all the same
    else:
        _compare_digests(folder, record.artifacts)
    comparable = record.base_files is not None and record.base_files.startswith(WHOLE)
    base = base_digest(folder, record.base) if comparable else None
    if base is not None and base != record.base_files:
        raise VerificationError(
            "is not the base that the run was trained on: its config, tokenizer or weights changed since",
            where=base_of(folder, record.base),
            fix=_BASE_AGAIN,
        )
    return config


def _compare_digests(folder: Path, recorded: Mapping[str, str]) -> None:
    digests = artifact_digests(folder)
    if not any(name.startswith(f"{PROCESSOR}/") for name in recorded):
        # A run of before processors were digested.
        digests = {name: digest for name, digest in digests.items() if not name.startswith(f"{PROCESSOR}/")}
    for name in (*digests, *recorded):
        if name not in digests:
            raise VerificationError("is missing", where=str(folder / name), fix=_AGAIN)
        if recorded.get(name) != digests[name]:
            raise VerificationError("is not what this run wrote", where=str(folder / name), fix=_AGAIN)


def check_files(folder: Path, record: RunRecord, query_tokens: int) -> Mapping[str, Any] | None:
    """Compares the files there are with those that the run wrote; otherwise as `check_run`."""
    _compare(folder / PROCESSOR, True, (folder / PROCESSOR).is_dir())
    for part, name in PART_FILES.items():
        _compare(folder / name, part in record.components, (folder / name).is_file())
    lora = "lora" in record.components
    _compare(folder / ADAPTER, lora or query_tokens > 0, (folder / ADAPTER).is_dir())
    if not (folder / ADAPTER).is_dir():
        return None
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        _compare(folder / ADAPTER / name, True, (folder / ADAPTER / name).is_file())
    config = read_adapter_config(folder / ADAPTER)
    if (config["peft_type"] == "LORA") != lora:
        raise VerificationError(
            f"is of the kind {config['peft_type']}, but the run trained {'LoRA' if lora else 'none'}",
            where=str(folder / ADAPTER),
            fix=_AGAIN,
        )
    for key in ("target_modules", "exclude_modules"):
        if isinstance(config.get(key), str):
            raise VerificationError(
                f"`{key}` is a regular expression; a run lists its modules",
                where=str(folder / ADAPTER / ADAPTER_CONFIG),
                fix=_AGAIN,
            )
    return config


def refuse_pickle_files(folder: Path) -> None:
    """Refuses a run folder with pickle in it, before anything opens it: lockadapt never writes any.

    Args:
        folder: of the run.

    Raises:
        SafetyError: names the file.
    """
    for part in (folder, folder / ADAPTER, folder / PROCESSOR, folder / BASE):
        for file in sorted(part.iterdir()) if part.is_dir() else ():
            if file.suffix.lower() in PICKLE_SUFFIXES:
                raise SafetyError(
                    "is or may hold pickle, and reading pickle can run any code",
                    where=str(file),
                    fix="remove it; lockadapt keeps weights in *.safetensors only",
                )


def artifact_digests(folder: Path) -> dict[str, str]:
    """Digests all that training left to be loaded.

    Tensors by key, dtype, shape and bytes; the adapter's settings; the processor's files by their bytes.

    Args:
        folder: of the run.

    Returns:
        By file, relative to the folder. Where the base lies is not part of it, which users move.

    Raises:
        VerificationError: a file is damaged, or a tensor is not finite.
    """
    config = folder / ADAPTER / ADAPTER_CONFIG
    digests: dict[str, str] = {}
    if config.is_file():
        values = {**read_adapter_config(folder / ADAPTER), "base_model_name_or_path": None}
        text = json.dumps(values, sort_keys=True)
        digests[f"{ADAPTER}/{ADAPTER_CONFIG}"] = hashlib.sha256(text.encode()).hexdigest()
    for name in (f"{ADAPTER}/{ADAPTER_WEIGHTS}", *PART_FILES.values()):
        if (folder / name).is_file():
            digests[name] = _tensors_digest(folder / name)
    for name in CONFIGS:
        if (file := folder / PROCESSOR / name).is_file():
            digests[f"{PROCESSOR}/{name}"] = sha256_of(file)
    return digests


def base_digest(folder: Path, recorded: str) -> str | None:
    """`folder_digest` of a run's base; None where that is not on this machine.

    Args:
        folder: of the run.
        recorded: where the base was when the run was trained, unless the run has its own.

    Returns:
        As `folder_digest`, or None.

    Raises:
        VerificationError: its files are damaged.
    """
    base = Path(base_of(folder, recorded)).expanduser()
    if not base.is_dir():
        cached = _cached(recorded)
        if cached is None:
            return None  # whoever loads it says that it is gone, and compares what was loaded
        base = cached
    try:
        return folder_digest(base)
    except DataError as error:
        raise VerificationError(error.message, where=error.where, fix=_BASE_AGAIN) from error


def check_base(
    recorded: BaseIdentity | None, model: Any, tokenizer: Any, where: str, fix: str = _BASE_AGAIN
) -> None:
    """Compares a loaded base, nothing attached, with the one that the run was trained on.

    Args:
        recorded: None in older runs: nothing is compared.
        model: the base, quantized as in training or not.
        tokenizer: the model's.
        where: the base's place, for messages.
        fix: what to do about another base, for messages.

    Raises:
        VerificationError: it is another; says which component, setting or part of the tokenizer.
    """
    if recorded is None:
        return
    if recorded.model_class != type(model).__name__:
        differ: tuple[str, ...] = (f"it is {type(model).__name__}, was {recorded.model_class}",)
    else:
        comparison = compare(recorded, base_identity(model, tokenizer, recorded.trained_rows))
        differ = (*comparison.base, *comparison.tokenizer)
    if differ:
        raise VerificationError(
            f"is not the base that the run was trained on: {'; '.join(differ)}",
            where=where,
            fix=fix,
        )


def _compare(path: Path, recorded: bool, there: bool) -> None:
    if there == recorded:
        return
    problem = "is not what the run wrote: it trained nothing of the kind" if there else "is missing"
    raise VerificationError(problem, where=str(path), fix=_AGAIN)


def _tensors_digest(file: Path) -> str:
    check_header(file)
    digests: dict[str, str] = {}
    with safe_open(file, "pt") as held:
        for key in held.keys():  # noqa: SIM118 - no mapping
            tensor = held.get_tensor(key)
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise VerificationError(f"{key} is not finite everywhere", where=str(file), fix=_AGAIN)
            digests[key] = tensor_digest(tensor)
    return fingerprint(digests)


def _cached(base: str) -> Path | None:
    """Where an earlier download left a model of the Hub."""
    if not HUB_ID.fullmatch(base):
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(base, "config.json")
    return Path(cached).parent if isinstance(cached, str) else None
