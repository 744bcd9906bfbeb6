"""Reads what is to be attached, strictly: a run folder, or a PEFT folder that `lockadapt export` made."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig, TrainableTokensConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lockadapt.building.experiment import Experiment, recorded_experiment
from lockadapt.errors import AdapterError, RecipeError, SetupError, VerificationError
from lockadapt.evaluation.target import BESIDE
from lockadapt.models.hub import hub_is_reachable
from lockadapt.models.origins import SIDECAR
from lockadapt.models.sources import HUB_ID
from lockadapt.runs.artifacts import ADAPTER, PART_FILES, PROCESSOR
from lockadapt.runs.artifacts import ADAPTER_CONFIG as CONFIG
from lockadapt.runs.artifacts import ADAPTER_WEIGHTS as WEIGHTS
from lockadapt.runs.run import open_run
from lockadapt.runs.run_folder import is_run
from lockadapt.tuning.adapter_config import read_adapter_config, refuse_pickled_adapter
from lockadapt.tuning.adapter_keys import PREFIX
from lockadapt.tuning.base_identity import BaseIdentity

BASE_IDENTITY, PROJECTOR_DIGEST = "base_identity", "projector_digest"
"""Keys of the sidecar `lockadapt.json`; the second one only where the projector is in a bridge."""

_FILES = ["*.json", "*.yaml", "*.safetensors", f"{ADAPTER}/*", f"{PROCESSOR}/*", BESIDE.as_posix()]

_KINDS: dict[str, Any] = {"LORA": LoraConfig, "TRAINABLE_TOKENS": TrainableTokensConfig}
_UNDERSTOOD = {
    *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "fan_in_fan_out", "bias"),
    *("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern"),
    *("trainable_token_indices", "token_indices", "init_weights", "init_lora_weights"),
    "target_parameters",
}
_BESIDE_THE_POINT = {
    *("base_model_name_or_path", "revision", "inference_mode", "task_type", "peft_type", "auto_mapping"),
    *("peft_version", "modules_to_save"),
}
_INIT_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Source:
    """An adapter as read from its folder.

    Attributes:
        config: PEFT's, for LoRA or trained tokens; None where only other parts were trained.
        tensors: everything that is to be put in: PEFT's keys without prefix and adapter name, parts by their
            stock names.
        identity: the base that it was trained on, if the folder says so.
        projector: digest of the trained projector, where it lies in the base (a bridge) and not in the
            folder.
        experiment: of the run, if the folder has it.
    """

    folder: Path
    config: Any
    tensors: dict[str, Tensor]
    identity: BaseIdentity | None
    projector: str | None
    experiment: Experiment | None

    @property
    def trained_rows(self) -> tuple[int, ...]:
        """Vocabulary rows that the adapter brings."""
        by_layer = getattr(self.config, "trainable_token_indices", None)
        rows = getattr(self.config, "token_indices", None) or by_layer or ()
        return tuple(
            sorted({row for numbers in rows.values() for row in numbers} if isinstance(rows, dict) else rows)
        )


def read_source(path_or_id: str | Path) -> Source:
    """Reads a run folder, an adapter folder, or one of them from the Hub (only if an id is named).

    What `--to adapter` wrote may be named as a whole, with its bridge beside, or by its folder `adapter`.

    Args:
        path_or_id: a folder, or a Hub id.

    Returns:
        The adapter, its tensors in memory.

    Raises:
        SafetyError: its weights are pickle.
        SetupError: it does not exist or cannot be fetched.
        RecipeError: it is an unfinished run, or nothing that can be attached.
        AdapterError: it asks for what cannot be attached.
        VerificationError: a file is damaged or missing, or a tensor is not finite.
    """
    folder = _find(path_or_id)
    run = open_run(folder) if is_run(folder) else None
    names: list[str | Path] = [*PART_FILES.values(), BESIDE]
    parts = [folder / name for name in names if (folder / name).is_file()]
    inner = folder / ADAPTER if (folder / ADAPTER).is_dir() else folder
    refuse_pickled_adapter(inner)
    has_adapter = (inner / CONFIG).is_file() or (inner / WEIGHTS).is_file() or inner != folder
    if not parts and not has_adapter:
        raise RecipeError(
            "is neither a run nor an adapter folder",
            where=str(folder),
            fix="name a folder that `lockadapt train` or `lockadapt export --to adapter` wrote",
        )
    config = _config(inner) if has_adapter else None
    tensors = {k.removeprefix(PREFIX): t for k, t in _load(inner / WEIGHTS).items()} if has_adapter else {}
    for file in parts:
        loaded = _load(file)
        if twice := sorted(set(loaded) & set(tensors)):
            raise VerificationError(f"{twice[0]} is there twice", where=str(file))
        tensors |= loaded
    if run is not None:
        return Source(folder, config, tensors, run.record.base_identity, None, run.experiment)
    sidecar = _sidecar(folder) or _sidecar(inner)
    recorded = sidecar.get(BASE_IDENTITY)
    identity = BaseIdentity.from_dict(recorded) if recorded else None
    experiment = recorded_experiment(sidecar["recipe"]) if sidecar.get("recipe") else None
    return Source(folder, config, tensors, identity, sidecar.get(PROJECTOR_DIGEST), experiment)


def _find(path_or_id: str | Path) -> Path:
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        return folder
    if isinstance(path_or_id, str) and HUB_ID.fullmatch(path_or_id):
        from huggingface_hub import snapshot_download

        reachable = hub_is_reachable()
        try:
            return Path(snapshot_download(path_or_id, allow_patterns=_FILES, local_files_only=not reachable))
        except Exception as error:
            if not reachable:
                raise SetupError(
                    "the adapter is no folder, not in the cache, and the Hub cannot be reached",
                    where=path_or_id,
                    fix="check the path, or connect and try again",
                ) from error
            raise SetupError(
                f"the adapter cannot be fetched: {type(error).__name__}: {str(error).splitlines()[0]}",
                where=path_or_id,
                fix="check the id, the connection and access rights",
            ) from error
    raise SetupError(
        "the adapter does not exist",
        where=str(path_or_id),
        fix="check the path, or give a Hub id such as org/name",
    )


def _sidecar(folder: Path) -> dict[str, Any]:
    return _json(folder / SIDECAR) if (folder / SIDECAR).is_file() else {}


def _json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VerificationError(f"cannot be read: {error}", where=str(file)) from error
    if not isinstance(values, dict):
        raise VerificationError("is no JSON object", where=str(file))
    return values


def _load(file: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise VerificationError(
            f"cannot be read: {error}", where=str(file), fix="copy or train it again"
        ) from error
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise VerificationError(
                f"{key} is not finite everywhere", where=str(file), fix="copy or train it again"
            )
    return tensors


def _config(folder: Path) -> Any:
    """PEFT's config, made of the fields that are understood; nothing else in the file has an effect."""
    file, values = folder / CONFIG, read_adapter_config(folder)
    make = _KINDS.get(str(values.get("peft_type")))
    if make is None:
        raise AdapterError(
            f"adapters of the kind {values.get('peft_type')} cannot be attached",
            where=str(file),
            fix="use LoRA",
        )
    default = make()
    fields = {field.name for field in dataclasses.fields(make)}
    for key, value in values.items():
        plain = getattr(default, key, None)
        if key not in _UNDERSTOOD | _BESIDE_THE_POINT and value not in (None, False, [], {}, plain):
            raise AdapterError(
                f"asks for {key}: {str(value)[:80]}, which cannot be attached",
                where=str(file),
                fix="load it with PEFT itself",
            )
    init = str(values.get("init_lora_weights", "")).lower()
    if init.startswith(_INIT_CHANGES_BASE):
        raise AdapterError(
            f"init_lora_weights is {init}, which changes the base itself",
            where=str(file),
            fix="convert the adapter with PEFT (path_initial_model_for_weight_conversion)",
        )
    kept = {key: value for key, value in values.items() if key in _UNDERSTOOD & fields and value is not None}
    kept.pop("init_lora_weights", None)  # what it would draw is written over
    return make(**kept, inference_mode=True)
