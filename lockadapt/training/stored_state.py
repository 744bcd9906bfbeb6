"""Judges what a checkpoint says before training goes on with it: values of the kinds that were written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from lockadapt.errors import LockadaptError, VerificationError, disk_ran_out, first_line, memory_ran_out

_Count = Annotated[int, Field(ge=0, lt=2**53)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class Progress(BaseModel):
    """`progress.json`, which `LoopState` writes."""

    model_config = ConfigDict(strict=True)

    measures: Measures
    total_loss: _Finite
    last_logged: _Count
    image_sensitivity: dict[str, _Finite]
    patience: list[_Count]


class Measures(BaseModel):
    """What `TrainingMetrics.state` gives beside tensors."""

    model_config = ConfigDict(strict=True)

    seen: dict[str, _Count]
    reports: list[str]
    gradients: list[str]
    step: _Count
    samples: _Count
    seconds: _Finite


class LoopPosition(BaseModel):
    """What Hugging Face's Trainer computes with of its `trainer_state.json`."""

    model_config = ConfigDict(strict=True)

    global_step: _Count
    max_steps: _Count
    epoch: _Finite | None = None
    num_train_epochs: _Finite | None = None
    train_batch_size: _Count | None = None
    num_input_tokens_seen: _Count = 0
    total_flos: _Finite = 0
    logging_steps: _Finite | None = None
    eval_steps: _Finite | None = None
    save_steps: _Finite | None = None
    log_history: list[dict[str, Any]] = []
    best_metric: _Finite | None = None
    best_global_step: _Count | None = None
    best_model_checkpoint: str | None = None
    is_hyper_param_search: bool = False
    is_local_process_zero: bool = True
    is_world_process_zero: bool = True
    stateful_callbacks: dict[str, Any] = {}


@contextmanager
def reading_checkpoint(folder: Path) -> Iterator[None]:
    """Opens a block in which whatever a library raises of a checkpoint's files says that they are damaged.

    Args:
        folder: of the checkpoint.

    Yields:
        Nothing.

    Raises:
        VerificationError: the checkpoint is damaged, and how.
    """
    try:
        yield
    except LockadaptError:
        raise
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise damaged(folder, f"`{key}`: {first['msg']}") from error
    except _CAUSES as error:
        if memory_ran_out(error) or disk_ran_out(error):
            raise
        raise damaged(folder, f"{type(error).__name__}: {first_line(error)}") from error


def damaged(folder: Path, reason: str) -> VerificationError:
    """The error of a checkpoint that cannot be used, with its reason."""
    return VerificationError(
        f"the checkpoint is damaged: {reason}",
        where=str(folder),
        fix="remove it; --resume goes on from the one before it, or from the start",
    )


def require_like(own: Any, stored: Any, where: str) -> None:
    """Requires that stored plain values are of the kinds that a live object holds in their place.

    Args:
        own: of the live object: mappings, sequences, numbers, texts.
        stored: read back. Entries that the live object does not have are left to it.
        where: names them, for the message.

    Raises:
        ValueError: an entry is missing or of another kind, or a number is not finite.
    """
    if isinstance(own, Mapping) and isinstance(stored, Mapping):
        if missing := [key for key in own if key not in stored]:
            raise ValueError(f"{where} has no {missing[0]!r}")
        for key in own:
            require_like(own[key], stored[key], f"{where}.{key}")
        return
    if _is_list(own) and _is_list(stored):
        if len(own) != len(stored):
            raise ValueError(f"{where} has {len(stored)} entries, not {len(own)}")
        for number, (ours, theirs) in enumerate(zip(own, stored, strict=True)):
            require_like(ours, theirs, f"{where}.{number}")
        return
    numbers = _is_number(own) and _is_number(stored)
    if numbers and not math.isfinite(stored):
        raise ValueError(f"{where} is {stored}")
    if not numbers and type(own) is not type(stored):
        raise ValueError(f"{where} is {str(stored)[:60]!r}, which is no {type(own).__name__}")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_CAUSES = (
    *(ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError),
    SafetensorError,
)
"""What reading a damaged file raises in the libraries that do so."""
