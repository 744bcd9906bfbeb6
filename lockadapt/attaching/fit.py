"""Judges whether an adapter fits a model: class, base, tokenizer, projector; before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoTokenizer

from lockadapt.architectures import layout_of
from lockadapt.architectures.base import component_of, unwrap_model
from lockadapt.attaching.source import Source
from lockadapt.errors import AdapterError, LockadaptError, VerificationError
from lockadapt.models.quiet import quiet
from lockadapt.tuning.base_identity import base_identity, compare, part_digest

FORCE = "attach to the base that it was trained on, or force_base=True (--force-base) if you know better"


@dataclass(frozen=True)
class Fit:
    """The differences between an adapter and a model. It fits if all three tuples are empty.

    Attributes:
        model_class: of the live model.
        classes, base, tokenizer: what differs, in words.
        not_compared: what could not be compared, and why.
    """

    model_class: str
    classes: tuple[str, ...]
    base: tuple[str, ...]
    tokenizer: tuple[str, ...]
    not_compared: tuple[str, ...]


def judge(
    model: nn.Module, source: Source, tokenizer: Any = None, modules: Mapping[str, nn.Module] | None = None
) -> Fit:
    """Compares a live model with what the adapter was trained on.

    Args:
        model: stock, on any device.
        source: what is to be attached.
        tokenizer: the model's tokenizer or processor; None: the one in the folder that it was loaded from, if
            that is on this machine.
        modules: as `base_identity` takes them.

    Returns:
        The differences.
    """
    base = unwrap_model(model)
    name, recorded = type(base).__name__, source.identity
    if recorded is None:
        difference = (
            "nothing in the folder says which base it was trained on (written by an older lockadapt, or "
            "by others)"
        )
        return Fit(name, (), (difference,), (), ())
    if recorded.model_class != name:
        difference = f"the adapter was trained on {recorded.model_class}, the model is {name}"
        return Fit(name, (difference,), (), (), ())
    identity = base_identity(base, _tokenizer(base, tokenizer), recorded.trained_rows, modules)
    result = compare(recorded, identity)
    bridge = _bridge(base, source)
    return Fit(name, (), (*result.base, *bridge), result.tokenizer, result.not_compared)


def enforce(fit: Fit, source: Source, force_base: bool) -> None:
    """Refuses what does not belong together.

    Args:
        fit: from `judge`.
        source: what is to be attached.
        force_base: whether another base or tokenizer is taken.

    Raises:
        AdapterError: another class; `force_base` does not help.
        VerificationError: another base or tokenizer, or none recorded, and not `force_base`.
    """
    error = refusal(fit, source)
    if error is not None and (fit.classes or not force_base):
        raise error


def refusal(fit: Fit, source: Source) -> LockadaptError | None:
    """The error that says what differs; None if nothing does."""
    where = str(source.folder)
    if fit.classes:
        return AdapterError(
            fit.classes[0], where=where, fix="load the model by the class that it was trained in"
        )
    differ = (*fit.base, *fit.tokenizer)
    if differ:
        return VerificationError(
            f"this is not the adapter's base: {'; '.join(differ)}", where=where, fix=FORCE
        )
    return None


def _tokenizer(model: Any, given: Any) -> Any:
    if given is not None:
        return getattr(given, "tokenizer", given)
    source = str(model.name_or_path or "")
    if not source:
        return None
    try:
        with quiet():
            # Never the network: a folder, or what an earlier download left.
            return AutoTokenizer.from_pretrained(Path(source).expanduser(), local_files_only=True)
    except Exception:
        return None  # `compare` reports that there was none


def _bridge(model: nn.Module, source: Source) -> tuple[str, ...]:
    """An adapter without a projector needs a base that has the trained one."""
    layout = layout_of(model)
    if not layout.projector or any(component_of(name, layout) == "projector" for name in source.tensors):
        return ()
    if source.projector is None:
        return ("the folder brings no projector, and does not say which one its base (the bridge) has",)
    same = part_digest(model, "projector") == source.projector
    return (
        () if same else ("the projector is not the trained one: load the bridge that was exported with it",)
    )
