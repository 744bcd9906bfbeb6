"""Which architecture holds what a recipe asks for: by the fusion's name, then by what the tower returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lockadapt.architectures import ARCHITECTURES
from lockadapt.architectures.base import Architecture, Assembly, Fusion
from lockadapt.errors import AssemblyError, RecipeError


@dataclass(frozen=True)
class Wish:
    """What is asked for: the fusion, patches a side that become one token (or None), image generation."""

    fusion: str = "mlp"
    factor: int | None = None
    generates_images: bool = False


@dataclass(frozen=True)
class Choice:
    """An architecture that can be assembled, and how it will be."""

    architecture: Architecture
    assembly: Assembly
    fusion: Fusion
    factor: int


def fusion_names() -> tuple[str, ...]:
    """The names of all fusions."""
    return tuple(
        dict.fromkeys(
            name
            for architecture in ARCHITECTURES
            if architecture.assemble
            for name in architecture.assemble.fusions
        )
    )


def choices(wish: Wish) -> list[Choice]:
    """Finds the architectures that offer what is asked for; the tower decides between them.

    Args:
        wish: what is asked for.

    Returns:
        The candidates.

    Raises:
        RecipeError: there is no such fusion, it does not divide the grid, or it is not offered where images
            are generated.
    """
    if wish.fusion not in fusion_names():
        raise RecipeError(
            f"no fusion {wish.fusion!r}", where="model.fusion", fix=f"use one of {', '.join(fusion_names())}"
        )
    fitting = [
        (architecture, architecture.assemble)
        for architecture in ARCHITECTURES
        if architecture.assemble and architecture.assemble.image_tokenizer == wish.generates_images
    ]
    possible = []
    for architecture, assembly in fitting:
        if fusion := assembly.fusions.get(wish.fusion):
            if wish.factor is not None and fusion.factor is None:
                raise RecipeError(
                    f"the fusion {fusion.name} makes a token of every patch",
                    where="model.factor",
                    fix="leave it out, or choose another fusion",
                )
            possible.append(Choice(architecture, assembly, fusion, wish.factor or fusion.factor or 1))
    if not possible:
        names = dict.fromkeys(name for _, assembly in fitting for name in assembly.fusions)
        raise RecipeError(
            f"the fusion {wish.fusion} is in no class that generates images",
            where="model.fusion",
            fix=f"use one of {', '.join(names)}, or leave model.image_tokenizer out",
        )
    return possible


def choose(candidates: Sequence[Choice], kind: str, where: str, llm: Any, tower: Any) -> Choice:
    """Chooses the candidate that takes a tower's kind of output, and whose class can hold LLM and tower.

    Args:
        candidates: from `choices`.
        kind: of the tower's output.
        where: the tower, for messages.
        llm: the causal LM, with weights or without.
        tower: the vision model, with weights or without.

    Returns:
        The choice.

    Raises:
        AssemblyError: none does.
    """
    taking = [candidate for candidate in candidates if kind in candidate.assembly.towers]
    if not taking:
        taken = " or ".join(
            dict.fromkeys(kind for candidate in candidates for kind in candidate.assembly.towers)
        )
        raise AssemblyError(
            f"the fusion {candidates[0].fusion.name} takes towers that return {taken}, and this one "
            f"returns a {kind}",
            where=where,
            fix="choose another tower, or another fusion",
        )
    reasons = []
    for candidate in taking:
        refuse = candidate.assembly.refuse
        reason = None if refuse is None else refuse(llm, tower)
        if reason is None:
            return candidate
        reasons.append(f"{candidate.architecture.model_class.__name__} cannot, as {reason}")
    raise AssemblyError(
        f"no class of the fusion {taking[0].fusion.name} holds this LLM and this tower: {'; '.join(reasons)}",
        where=where,
        fix="choose another fusion, LLM or tower",
    )
