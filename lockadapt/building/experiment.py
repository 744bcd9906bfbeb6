"""What a recipe is made into, once: objectives, settings, rows and stages.

Everything above gets this, not the recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lockadapt.building.objectives import build_objectives, embedding_dimension
from lockadapt.building.samples import build_samples, source_rows
from lockadapt.building.stages import Stage, build_stages
from lockadapt.data.sample import Sample
from lockadapt.errors import RecipeError
from lockadapt.features.policy import DEFAULT_CACHE, FeatureSettings
from lockadapt.objectives import Objective
from lockadapt.recipe.models import LoraSection, ModelSection
from lockadapt.recipe.read import load_recipe
from lockadapt.recipe.schema import (
    DataSection,
    EvaluationSection,
    Recipe,
    TrainingSection,
)
from lockadapt.tuning.adapters import LoraSettings

_ONLY_TRAINING = ("model", "lora", "training", "stages", "output")
"""Sections of a recipe that say how a model is made, not how it is used."""


@dataclass(frozen=True)
class Experiment:
    """One recipe and all that is made from it; each thing is made when it is first asked for, and then kept.

    Attributes:
        recipe: as it was checked; for rooms that write or compare recipes.
    """

    recipe: Recipe

    @cached_property
    def objectives(self) -> Mapping[str, Objective]:
        """The objectives by name; a stage's: `lockadapt.building.objectives.stage_objectives`.

        Returns:
            Objectives by name, made once.

        Raises:
            DataError: a closed list of answers is wrong.
        """
        return build_objectives(self.recipe)

    @cached_property
    def lora(self) -> LoraSettings | None:
        """What adapters are made from; None: none."""
        return lora_settings(self.recipe.lora) if self.recipe.lora else None

    @cached_property
    def features(self) -> FeatureSettings:
        """Where the frozen tower's outputs are kept."""
        return feature_settings(self.recipe.data)

    @cached_property
    def projector_trains(self) -> bool:
        """Whether the projector trains in any stage; if not, what it makes of images may be kept."""
        stages = self.stages(dict.fromkeys(self.objectives, 1))
        return any("projector" in stage.train for stage in stages)

    @cached_property
    def query_tokens(self) -> int:
        """How many query tokens the objectives read embeddings behind."""
        return max(objective.query_tokens for objective in self.objectives.values())

    @cached_property
    def dimension(self) -> int | None:
        """The size of a dual encoder's embeddings; None: the recipe trains another model.

        Returns:
            The size, or None.

        Raises:
            RecipeError: the objectives name several.
        """
        return embedding_dimension(self.recipe, self.objectives)

    @property
    def model(self) -> ModelSection:
        """What is bridged."""
        return self.recipe.model

    @property
    def data(self) -> DataSection:
        """How rows become batches."""
        return self.recipe.data

    @property
    def training(self) -> TrainingSection:
        """How long and how fast."""
        return self.recipe.training

    @property
    def evaluation(self) -> EvaluationSection:
        """How answers are scored."""
        return self.recipe.evaluation

    @property
    def blind(self) -> bool:
        """Whether every image is the mean image."""
        return self.recipe.blind

    def samples(
        self,
        part: str,
        only: Collection[str] | None = None,
        note: Callable[[str], None] | None = None,
        most: int | None = None,
        streamed: bool = True,
    ) -> dict[str, list[Sample]]:
        """Reads rows; see `lockadapt.building.samples.build_samples`."""
        return build_samples(self.recipe, part, only, note, most, streamed)

    def source_rows(self, name: str, counts: Sequence[int]) -> list[dict[str, Any]]:
        """What each source gives; see `lockadapt.building.samples.source_rows`."""
        return source_rows(self.recipe, name, counts)

    def stages(self, rows: Mapping[str, int], processes: int = 1) -> list[Stage]:
        """The stages; see `lockadapt.building.stages.build_stages`."""
        return build_stages(self.recipe, self.objectives, rows, processes)


def build_experiment(recipe: Recipe) -> Experiment:
    """Builds everything that a recipe says, its objectives made and checked.

    Args:
        recipe: checked already.

    Returns:
        The experiment.

    Raises:
        DataError: a closed list of answers is wrong.
        RecipeError: a dual encoder of two dimensions.
    """
    experiment = Experiment(recipe)
    _ = experiment.dimension  # makes the objectives as well
    return experiment


def recorded_experiment(values: Mapping[str, Any]) -> Experiment:
    """Wraps a recipe that lockadapt wrote beside a model; nothing is made yet: its files may be elsewhere.

    Args:
        values: the recipe as plain values; keys may have their former names.

    Returns:
        The experiment.
    """
    return Experiment(Recipe.model_validate(values))


def read_experiment(
    file: Path | None, overrides: Sequence[str], trained: Experiment | None, note: Callable[[str], None]
) -> Experiment:
    """Reads a recipe file or, where none is named, takes the one that was trained; with values replaced.

    Args:
        file: YAML; None: `trained` is taken.
        overrides: `key.path=value`.
        trained: what a folder says that it was trained with.
        note: told what keys are called otherwise now.

    Returns:
        The experiment, its objectives made and checked.

    Raises:
        RecipeError: the recipe is wrong, or an override is of a section that only training reads.
        DataError: as `build_experiment`.
    """
    # A file may need them to be a whole recipe.
    for override in overrides if file is None else ():
        if (section := override.split("=")[0].split(".")[0].strip()) in _ONLY_TRAINING:
            raise RecipeError(
                f"{section} was settled when the model was trained, and changes nothing here",
                where=f"--set {override}",
                fix="override keys of data, evaluation or objectives, or train again",
            )
    values = None if file is not None or trained is None else trained.recipe.model_dump(mode="json")
    loaded = load_recipe(file, overrides, values)
    for notice in loaded.notices:
        note(notice)
    return build_experiment(loaded.recipe)


def lora_settings(section: LoraSection) -> LoraSettings:
    """What adapters are made from."""
    targets = section.targets if isinstance(section.targets, str) else tuple(section.targets)
    return LoraSettings(
        rank=section.rank,
        alpha=section.alpha,
        dropout=section.dropout,
        targets=targets,
        rslora=section.rslora,
        dora=section.dora,
        init=section.init,
    )


def feature_settings(section: DataSection) -> FeatureSettings:
    """Where the frozen tower's outputs are kept."""
    return FeatureSettings(
        section.features,
        section.feature_memory_gib,
        section.feature_disk_gib,
        section.feature_dtype,
        Path(section.cache) if section.cache else DEFAULT_CACHE,
        section.workers,
    )
