"""Which architecture holds what a recipe asks for: by the fusion's name, then by what the tower returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lockadapt.architectures import ARCHITECTURES
from lockadapt.architectures.assembly import Assembly, Fusion
from lockadapt.architectures.base import Architecture
from lockadapt.errors import AssemblyError, RecipeError
from lockadapt.models.llms import BESIDE, is_encoder_decoder

USUAL = "mlp"
"""The fusion of whoever names none, where a class holds LLM and tower with it."""


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    Attributes:
        fusion: its name.
        factor: patches a side that become one token; None: the fusion's own.
        grid: (rows, columns) of tiles that images may be cut into; None: all of up to `max_tiles` tiles.
        max_tiles: the most tiles of an image; None: the fusion's own.
        generates_images: whether the class must.
        queries: learned queries that read an image; None: the fusion's own.
    """

    fusion: str = USUAL
    factor: int | None = None
    grid: tuple[tuple[int, int], ...] | None = None
    max_tiles: int | None = None
    generates_images: bool = False
    queries: int | None = None


@dataclass(frozen=True)
class Choice:
    """An architecture that can be assembled, and how it will be; see `Ingredients` for its numbers."""

    architecture: Architecture
    assembly: Assembly
    fusion: Fusion
    factor: int
    grids: tuple[tuple[int, int], ...] = ()
    queries: int = 0


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
        RecipeError: there is no such fusion, it has no use for what else is asked for, or it is not offered
            where images are generated.
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
    possible: list[Choice] = []
    unknown: list[RecipeError] = []
    for architecture, assembly in fitting:
        if fusion := assembly.fusions.get(wish.fusion):
            try:
                check_keys(wish, fusion)
            except RecipeError as error:
                unknown.append(error)
                continue
            factor, queries = wish.factor or fusion.factor or 1, wish.queries or fusion.queries or 0
            grids = tile_grids(wish, fusion)
            possible.append(Choice(architecture, assembly, fusion, factor, grids, queries))
    if not possible and unknown:
        raise unknown[0]
    if not possible:
        names = dict.fromkeys(name for _, assembly in fitting for name in assembly.fusions)
        raise RecipeError(
            f"the fusion {wish.fusion} is in no class that generates images",
            where="model.fusion",
            fix=f"use one of {', '.join(names)}, or leave model.image_tokenizer out",
        )
    return possible


def check_keys(wish: Wish, fusion: Fusion) -> None:
    """Checks that a fusion knows what is asked of it.

    Args:
        wish: what is asked for.
        fusion: as a class offers it.

    Raises:
        RecipeError: it does not, or two keys say different things.
    """
    given = {
        "factor": (wish.factor, fusion.factor, "makes a token of every patch"),
        "grid": (wish.grid, fusion.max_tiles, "makes one square of every image"),
        "max_tiles": (wish.max_tiles, fusion.max_tiles, "makes one square of every image"),
        "queries": (wish.queries, fusion.queries, "reads images without queries"),
    }
    for key, (wanted, offered, why) in given.items():
        if wanted is not None and offered is None:
            raise RecipeError(
                f"the fusion {fusion.name} {why}",
                where=f"model.{key}",
                fix="leave it out, or choose another fusion",
            )
    if wish.grid is not None and wish.max_tiles is not None:
        raise RecipeError(
            "model.grid lists the grids of tiles, and model.max_tiles asks for all up to a number",
            where="model.max_tiles",
            fix="leave one of the two out",
        )


def tile_grids(wish: Wish, fusion: Fusion) -> tuple[tuple[int, int], ...]:
    """The grids, (rows, columns) of tiles, that images may be cut into.

    Args:
        wish: what is asked for.
        fusion: offers tiles, or not.

    Returns:
        As the recipe lists them, or all of up to so many tiles, in order of their number; none without tiles.
    """
    if fusion.max_tiles is None:
        return ()
    if wish.grid is not None:
        return tuple(dict.fromkeys(wish.grid))
    most = wish.max_tiles or fusion.max_tiles
    grids = [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)]
    return tuple(sorted(grids, key=lambda grid: (grid[0] * grid[1], grid)))


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
        if is_encoder_decoder(llm.config) and not candidate.assembly.encoder_decoders:
            reason = f"{type(llm).__name__} has {BESIDE}"
        if reason is None:
            return candidate
        reasons.append(f"{candidate.architecture.model_class.__name__} cannot, as {reason}")
    raise AssemblyError(
        f"no class of the fusion {taking[0].fusion.name} holds this LLM and this tower: {'; '.join(reasons)}",
        where=where,
        fix="choose another fusion, LLM or tower",
    )
