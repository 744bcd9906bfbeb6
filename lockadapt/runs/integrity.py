"""Compares a run folder's files with what the run records of them: no run whose files are others is ever opened."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lockadapt.errors import VerificationError
from lockadapt.runs.artifacts import ADAPTER, ADAPTER_CONFIG, ADAPTER_WEIGHTS, PART_FILES, PROCESSOR
from lockadapt.runs.record import RunRecord

_AGAIN = "copy the run folder again, or train again"


def check_files(folder: Path, record: RunRecord, query_tokens: int) -> Mapping[str, Any] | None:
    """Compares which files there are with which the run wrote; weights are not read here.

    Args:
        query_tokens: that the run trained; the adapter holds them.

    Returns:
        `adapter_config.json` of the run's adapter; None where it trained neither LoRA nor query tokens.

    Raises:
        VerificationError: a file is missing, one is there that the run did not write, or the adapter is of another kind.
    """
    _compare(folder / PROCESSOR, True, (folder / PROCESSOR).is_dir())
    for part, name in PART_FILES.items():
        _compare(folder / name, part in record.components, (folder / name).is_file())
    lora = "lora" in record.components
    _compare(folder / ADAPTER, lora or query_tokens > 0, (folder / ADAPTER).is_dir())
    if not (folder / ADAPTER).is_dir():
        return None
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        _compare(folder / ADAPTER / name, True, (folder / ADAPTER / name).is_file())
    config = _adapter_config(folder / ADAPTER / ADAPTER_CONFIG)
    if (config.get("peft_type") == "LORA") != lora:
        raise VerificationError(
            f"is of the kind {config.get('peft_type')}, but the run trained {'LoRA' if lora else 'none'}",
            where=str(folder / ADAPTER),
            fix=_AGAIN,
        )
    return config


def _compare(place: Path, recorded: bool, there: bool) -> None:
    if there == recorded:
        return
    said = "is not what the run wrote: it trained nothing of the kind" if there else "is missing"
    raise VerificationError(said, where=str(place), fix=_AGAIN)


def _adapter_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise VerificationError(f"cannot be read: {error}", where=str(file), fix=_AGAIN) from error
    if not isinstance(config, dict):
        raise VerificationError("holds no JSON object", where=str(file), fix=_AGAIN)
    return config
