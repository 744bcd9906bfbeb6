"""`adapter_config.json`, read strictly: values of the kinds that PEFT computes with, no endless pattern."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from lockadapt.errors import DataError, SafetyError, VerificationError
from lockadapt.models.safetensors_file import read_shard

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"

PATTERN_SECONDS = 10
"""That all patterns of a config may take on all modules of a model; honest ones take milliseconds."""

_AGAIN = "copy it again, or train again"

_Rank = Annotated[int, Field(ge=1)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Index = Annotated[int, Field(ge=0)]


class _AdapterConfig(BaseModel):
    """Fields that are computed with, or run as regular expressions; others are judged where they are used."""

    model_config = ConfigDict(strict=True, extra="allow")

    peft_type: str
    r: _Rank = 8
    lora_alpha: _Finite = 8
    lora_dropout: Annotated[float, Field(ge=0, le=1)] = 0
    target_modules: list[str] | str | None = None
    target_parameters: list[str] | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    # PEFT computes with these two as they stand, so null is no way to leave them out.
    rank_pattern: dict[str, _Rank] = {}
    alpha_pattern: dict[str, _Finite] = {}
    layers_to_transform: list[_Index] | _Index | None = None
    layers_pattern: list[str] | str | None = None
    token_indices: list[_Index] | None = None
    trainable_token_indices: list[_Index] | dict[str, list[_Index]] | None = None
    fan_in_fan_out: bool = False
    use_rslora: bool = False
    use_dora: bool = False
    bias: str = "none"
    init_lora_weights: bool | str | None = None
    base_model_name_or_path: str | None = None


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json` of a PEFT folder, every value checked.

    Args:
        folder: of PEFT's files.

    Returns:
        Its values as they stand.

    Raises:
        SafetyError: the folder keeps its weights as pickle.
        VerificationError: the file cannot be read, a value is not what PEFT writes, or a rank is larger than
            any that the weights have, so that making its layers would fill the memory.
    """
    refuse_pickled_adapter(folder)
    file = folder / CONFIG
    try:
        values = from_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise VerificationError(f"cannot be read: {error}", where=str(file), fix=_AGAIN) from error
    if not isinstance(values, dict):
        raise VerificationError("holds no JSON object", where=str(file), fix=_AGAIN)
    try:
        config = _AdapterConfig.model_validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in values)
        raise VerificationError(
            f"is damaged: `{key}`: {first['msg']}, got {str(first.get('input'))[:60]!r}",
            where=str(file),
            fix=_AGAIN,
        ) from error
    if config.peft_type == "LORA":
        _try_with_peft(folder)
        if (folder / WEIGHTS).is_file():
            _require_ranks(config, values, folder)
    return values


def refuse_pickled_adapter(folder: Path) -> None:
    """Refuses a PEFT folder whose weights are pickle, before anything looks at them.

    Args:
        folder: a PEFT folder.

    Raises:
        SafetyError: it holds `adapter_model.bin`.
    """
    if (folder / PICKLED).exists():
        raise SafetyError(
            "is pickle, and reading pickle can run any code",
            where=str(folder / PICKLED),
            fix=f"convert it to {WEIGHTS} where you trust it, and remove the .bin",
        )


def check_header(file: Path) -> None:
    """Compares the header of a safetensors file with the file.

    Args:
        file: safetensors.

    Raises:
        VerificationError: it is damaged.
    """
    try:
        read_shard(file)
    except DataError as error:
        raise VerificationError(error.message, where=error.where, fix=_AGAIN) from error


def refuse_endless_patterns(values: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    """Tries what PEFT would run as regular expressions on a model's modules, in a process that can be ended.

    Args:
        values: of `adapter_config.json`.
        names: of the model's modules.
        where: the file, for messages.

    Raises:
        VerificationError: a pattern is no regular expression, or does not end within `PATTERN_SECONDS`.
    """
    patterns = _patterns(values)
    if not patterns:
        return
    asked = json.dumps({"patterns": patterns, "names": list(names)})
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _TRY],
            input=asked,
            capture_output=True,
            text=True,
            timeout=PATTERN_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise VerificationError(
            f"a regular expression in it does not end: {patterns[0][:60]!r}",
            where=where,
            fix="list the modules in target_modules by their names",
        ) from error
    if done.returncode:
        message = (done.stderr.strip().splitlines() or ["it cannot be tried"])[-1]
        raise VerificationError(
            f"a regular expression in it is wrong: {message[:200]}",
            where=where,
            fix="list the modules in target_modules by their names",
        )


_TRY = """
import json, re, sys
asked = json.load(sys.stdin)
for pattern in asked["patterns"]:
    tried = re.compile(pattern)
    for name in asked["names"]:
        tried.fullmatch(name)
"""


def _patterns(values: Mapping[str, Any]) -> list[str]:
    """What PEFT makes regular expressions of."""
    patterns = [
        values[key] for key in ("target_modules", "exclude_modules") if isinstance(values.get(key), str)
    ]
    layers = values.get("layers_pattern") or []
    patterns += [rf".*\.{layer}\.(\d+)\..*" for layer in ([layers] if isinstance(layers, str) else layers)]
    patterns += [
        rf"(.*\.)?({pattern})"
        for key in ("rank_pattern", "alpha_pattern")
        for pattern in (values.get(key) or {})
    ]
    return patterns


def _try_with_peft(folder: Path) -> None:
    """Has PEFT judge the fields that nothing else here computes with."""
    from peft import LoraConfig

    try:
        LoraConfig.from_pretrained(str(folder))
    except Exception as error:  # whatever a field makes PEFT stumble over
        raise VerificationError(
            f"is damaged: PEFT cannot read it: {type(error).__name__}: {error}",
            where=str(folder / CONFIG),
            fix=_AGAIN,
        ) from error


def _require_ranks(config: _AdapterConfig, values: Mapping[str, Any], folder: Path) -> None:
    check_header(folder / WEIGHTS)
    shapes = [tensor.shape for tensor in read_shard(folder / WEIGHTS).tensors if "lora_" in tensor.key]
    most = max((math.prod(shape[-2:]) if len(shape) < 2 else max(shape) for shape in shapes), default=0)
    asked = max([config.r, *(config.rank_pattern or {}).values()])
    if shapes and asked > most:
        raise VerificationError(
            f"asks for rank {asked:,}, and no tensor of the adapter has more than {most:,} rows",
            where=str(folder / CONFIG),
            fix=_AGAIN,
        )
