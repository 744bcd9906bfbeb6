"""What a recipe is made into, once: objectives, settings, rows and stages. Everything above gets this, not the recipe."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from lockadapt.building.objectives import build_objectives, embedding_dimension
from lockadapt.building.samples import build_samples
from lockadapt.building.stages import Stage, build_stages
from lockadapt.data.sample import Sample
from lockadapt.features.policy import DEFAULT_CACHE, FeatureSettings
from lockadapt.objectives import Objective
from lockadapt.recipe.schema import (
    DataSection,
    EvaluationSection,
    LoraSection,
    ModelSection,
    Recipe,
    TrainingSection,
)
from lockadapt.tuning.adapters import LoraSettings


@dataclass(frozen=True)
class Experiment:
    """One recipe and all that is made from it.

    Attributes:
        recipe: as it was checked; for rooms that write or compare recipes.
        objectives: by name; what a stage has of them: `lockadapt.building.objectives.stage_objectives`.
        lora: what adapters are made from; None: none.
        features: where the frozen tower's outputs are kept.
        query_tokens: how many the objectives read embeddings behind.
        dimension: of a dual encoder's embeddings; None: the recipe trains another model.
    """

    recipe: Recipe
    objectives: Mapping[str, Objective]
    lora: LoraSettings | None
    features: FeatureSettings
    query_tokens: int
    dimension: int | None

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

    def samples(self, part: str, only: Collection[str] | None = None) -> dict[str, list[Sample]]:
        """Reads rows; see `lockadapt.building.samples.build_samples`."""
        return build_samples(self.recipe, part, only)

    def stages(self, rows: Mapping[str, int], processes: int = 1) -> list[Stage]:
        """The stages; see `lockadapt.building.stages.build_stages`."""
        return build_stages(self.recipe, self.objectives, rows, processes)


def build_experiment(recipe: Recipe) -> Experiment:
    """Everything that a recipe says, made once.

    Raises:
        DataError: a closed list of answers is wrong.
        RecipeError: a dual encoder of two dimensions.
    """
    objectives = build_objectives(recipe)
    return Experiment(
        recipe,
        objectives,
        lora_settings(recipe.lora) if recipe.lora else None,
        feature_settings(recipe.data),
        max(objective.query_tokens for objective in objectives.values()),
        embedding_dimension(recipe, objectives),
    )


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
