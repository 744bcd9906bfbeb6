"""Says whether an adapter fits a stock folder, and why not, by attaching it to a copy in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockadapt.architectures.load import load_model
from lockadapt.attaching.attach import attach
from lockadapt.attaching.fit import judge, refusal
from lockadapt.attaching.source import read_source
from lockadapt.errors import LockadaptError, VerificationError


@dataclass(frozen=True)
class Checked:
    """What `lockadapt attach --check --json` prints, and the error that an attach would end in."""

    report: dict[str, Any]
    error: LockadaptError | None


def check(model_folder: str | Path, adapter: str | Path, *, force_base: bool = False) -> Checked:
    """Loads the base from its stock folder and tries the adapter on it.

    Args:
        model_folder: folder or Hub id of a Transformers model.
        adapter: as `attach` takes it.
        force_base: another base or tokenizer is reported, and does not count.

    Returns:
        `{"fits", "model_class", "class", "base", "tokenizer", "tensors", "not_compared"}`: lists of what
        differs.

    Raises:
        LockadaptError: model or adapter cannot be read at all.
    """
    source = read_source(adapter)
    model, processor = load_model(model_folder)
    fit = judge(model, source, processor)
    error, tensors = refusal(fit, source), []
    if not fit.classes:
        try:
            attach(model, adapter, force_base=True, tokenizer=processor).detach()
        except VerificationError as problem:
            error, tensors = problem, [problem.message]
        else:
            error = None if force_base else error
    report = {
        "fits": error is None,
        "model_class": fit.model_class,
        "class": list(fit.classes),
        "base": list(fit.base),
        "tokenizer": list(fit.tokenizer),
        "tensors": tensors,
        "not_compared": list(fit.not_compared),
    }
    return Checked(report, error)
