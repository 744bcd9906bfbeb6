"""Which fusions hold an LLM and a tower, and why others do not: asked where the usual one does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lockadapt.architectures.blueprint import assembled_blueprint
from lockadapt.architectures.choose import USUAL, Wish, choices, fusion_names
from lockadapt.errors import AssemblyError, LockadaptError
from lockadapt.models.llms import load_llm, probe_llm


@dataclass(frozen=True)
class Holding:
    """A fusion, and the class that holds a pair with it; or the reason why none does."""

    fusion: str
    model_class: str | None
    reason: str | None = None


def holdings(
    llm: str | Path,
    tower: str | Path,
    *,
    image_size: int | None = None,
    feature_layer: int | Sequence[int] = -2,
    measured: bool = True,
) -> list[Holding]:
    """Tries every fusion on an LLM and a tower, without weights beyond the LLM's own.

    Args:
        llm: folder or Hub id of a language model.
        tower: folder or Hub id of a vision model.
        image_size: side in pixels; None: as the tower's own preprocessing ends.
        feature_layer: hidden layer of the tower that is projected, or several.
        measured: whether the LLM is loaded and run, which tells what its structure does not (a scaled or
            capped logit); else structure alone decides.

    Returns:
        One entry a fusion, in the order of `fusion_names`.
    """
    unfit = _measured_reason(llm) if measured else None
    entries = []
    for name in fusion_names():
        reason, model_class = None, None
        whole = any(candidate.assembly.whole_llm for candidate in choices(Wish(name)))
        if unfit is not None and not whole:
            reason = unfit
        else:
            try:
                model = assembled_blueprint(
                    llm,
                    tower,
                    torch.float32,
                    fusion_name=name,
                    image_size=image_size,
                    feature_layer=feature_layer,
                ).model
                model_class = type(model).__name__
            except LockadaptError as error:
                reason = error.message
        entries.append(Holding(name, model_class, reason))
    return entries


def only_fusion(entries: list[Holding], usual: AssemblyError) -> str:
    """The one fusion that holds a pair which the usual one does not.

    Args:
        entries: see `holdings`.
        usual: why the usual fusion does not hold it.

    Returns:
        Its name.

    Raises:
        AssemblyError: there is none, or more than one; the message names all.
    """
    holding = [entry.fusion for entry in entries if entry.model_class is not None]
    if len(holding) == 1:
        return holding[0]
    reasons: dict[str, list[str]] = {}
    for entry in entries:
        if entry.reason is not None:
            reasons.setdefault(entry.reason, []).append(entry.fusion)
    refused = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
    if not holding:
        raise AssemblyError(
            f"no fusion holds this LLM and this tower ({refused})", where=usual.where, fix=usual.fix
        ) from usual
    raise AssemblyError(
        f"{USUAL} does not hold this LLM and this tower, and {', '.join(holding)} do (not {refused})",
        where=usual.where,
        fix="name one of them as model.fusion (assemble --fusion)",
    ) from usual


def _measured_reason(llm: str | Path) -> str | None:
    """Why classes that hold no more than a body and a linear head cannot hold an LLM; None: they can."""
    try:
        probe_llm(load_llm(llm, torch.float32).model)
    except AssemblyError as error:
        return error.message
    return None
