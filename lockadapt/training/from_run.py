"""Starts a run where another one ended: its adapter and trained parts go into the new model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from lockadapt.errors import VerificationError
from lockadapt.models.sources import some
from lockadapt.runs.artifacts import ADAPTER, ADAPTER_WEIGHTS, load_parts
from lockadapt.runs.integrity import check_base
from lockadapt.runs.run import Run, open_run


def open_start(model: Any, processor: Any, folder: str) -> Run:
    """Opens a finished run, and compares its base with a model that was built from it.

    Args:
        model: without adapters.
        processor: the model's.
        folder: of the finished run.

    Returns:
        The run.

    Raises:
        RecipeError: the run is not finished.
        VerificationError: the run is damaged, or its base is another one.
    """
    run = open_run(Path(folder).expanduser())
    check_base(run.record.base_identity, model, processor.tokenizer, run.base)
    return run


def begin_from(model: Any, run: Run) -> None:
    """Reads what a finished run trained into a model that is ready to train.

    Args:
        model: on the run's base, with adapters of the same shape.
        run: the finished one.

    Raises:
        VerificationError: the run's tensors do not fit.
    """
    if run.adapter is not None:
        file = run.folder / ADAPTER / ADAPTER_WEIGHTS
        saved = load_file(file)
        wrong = sorted(saved)
        if hasattr(model, "peft_config"):
            result: Any = set_peft_model_state_dict(model, saved)
            lacking = [key for key in result.missing_keys if ".lora_" in key]
            wrong = [*result.unexpected_keys, *lacking]
        if wrong:
            raise VerificationError(
                f"the adapter of the run does not fit: {some(wrong)}",
                where=str(file),
                fix="leave `lora` out of the recipe: it is that of the run",
            )
    load_parts(model, run.folder)
