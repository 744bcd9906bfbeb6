"""The objectives of a recipe, and those of one of its stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lockadapt.data.readers.files import read_text
from lockadapt.data.sources import SourceDraw
from lockadapt.errors import DataError, RecipeError
from lockadapt.objectives import KINDS, ImageText, Objective
from lockadapt.recipe.objectives import AnswerSection, ItcSection
from lockadapt.recipe.schema import Recipe


def build_objectives(recipe: Recipe) -> dict[str, Objective]:
    """Builds the recipe's objectives.

    Every key of an objective's section that its class has a field for becomes that field.

    Args:
        recipe: checked already.

    Returns:
        Objectives by name.

    Raises:
        DataError: a closed list of answers is no file, or has fewer than two answers.
        RecipeError: embeddings of tokens are asked of a dual encoder.
    """
    chosen: dict[str, Objective] = {}
    for name, section in recipe.objectives.items():
        make: Any = KINDS[section.kind]
        given = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in section
            if value is not None
        }
        given["sources"] = tuple(
            SourceDraw(source.weight, source.shuffle is not False) for source in section.sources("train")
        )
        if isinstance(section, ItcSection):
            given["mode"] = "dual" if embeds_apart(recipe) else "vlm"
            if given["mode"] == "dual" and section.pooling == "tokens":
                raise RecipeError(
                    "a dual encoder compares one vector a side, not one a token",
                    where=f"objectives.{name}.pooling: tokens",
                    fix="add `mode: vlm`",
                )
        if isinstance(section, AnswerSection):
            given["answers"] = _closed_list(name, section.answers)
        fields = {field.name for field in dataclasses.fields(make)}
        chosen[name] = make(**{key: value for key, value in given.items() if key in fields})
    return chosen


def stage_objectives(
    objectives: Mapping[str, Objective], names: Collection[str], sampling_weights: Mapping[str, float]
) -> dict[str, Objective]:
    """The objectives of a stage, with the shares of micro-batches that the stage gives them."""
    return {
        name: dataclasses.replace(
            objective, sampling_weight=sampling_weights.get(name, objective.sampling_weight)
        )
        for name, objective in objectives.items()
        if name in names
    }


def embeds_apart(recipe: Recipe) -> bool:
    """Whether a recipe trains a dual encoder: so it is where it only retrieves and does not say otherwise."""
    return all(
        isinstance(section, ItcSection) and section.mode != "vlm" for section in recipe.objectives.values()
    )


def embedding_dimension(recipe: Recipe, objectives: Mapping[str, Objective]) -> int | None:
    """The size of a dual encoder's embeddings; None: the recipe trains another model.

    Args:
        recipe: says whether a dual encoder is trained.
        objectives: the recipe's, by name.

    Returns:
        The size, or None.

    Raises:
        RecipeError: its objectives name different sizes.
    """
    if not embeds_apart(recipe):
        return None
    dimensions = {
        objective.dimension for objective in objectives.values() if isinstance(objective, ImageText)
    }
    if len(dimensions) > 1:
        raise RecipeError("a dual encoder has one dimension", where="objectives.….dimension", fix="give one")
    return dimensions.pop()


def _closed_list(name: str, answers: list[str] | str | None) -> tuple[str, ...] | None:
    if answers is None:
        return None
    if isinstance(answers, str):
        file = Path(answers)
        if not file.is_file():
            raise DataError(
                "the list of answers is no file",
                where=f"objectives.{name}.answers: {answers}",
                fix="name a text file",
            )
        answers = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    if len(set(answers)) < 2:
        raise DataError("a closed list needs two answers or more", where=f"objectives.{name}.answers")
    return tuple(dict.fromkeys(answers))
