"""Embeds images and texts with a run or a merged folder, as its contrastive objective does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lockadapt.data.encode import Encoder
from lockadapt.data.pixels import PixelInputs
from lockadapt.data.sample import ImageRef
from lockadapt.errors import RecipeError
from lockadapt.evaluation.bench import EvaluationBench
from lockadapt.evaluation.target import Target, make_ready
from lockadapt.objectives import ImageText, Objective
from lockadapt.objectives.base import Progress
from lockadapt.recipe.schema import Recipe
from lockadapt.training.from_recipe import objectives_of
from lockadapt.training.rows import context_length


@dataclass(frozen=True)
class Embedder:
    """A model with its contrastive objective."""

    objective: ImageText
    bench: EvaluationBench

    @classmethod
    def of(cls, model: nn.Module, processor: Any, objective: ImageText, recipe: Recipe) -> Embedder:
        """A model that the objective has prepared."""
        encoder = Encoder(processor, recipe.data.max_length or context_length(model))
        images = PixelInputs(processor.image_processor, recipe.data.max_pixels)
        size = recipe.evaluation.batch_size
        return cls(objective, EvaluationBench(model.eval(), encoder, images, size, None))

    @classmethod
    def open(cls, target: Target) -> Embedder:
        """That of a run or of a merged folder.

        Raises:
            RecipeError: the model was not trained to embed, or nothing says how.
        """
        if target.recipe is None:
            raise RecipeError(
                "the folder does not say which recipe it was trained with",
                where=str(target.folder),
                fix="name a run with an objective of the kind itc, or a folder merged from one",
            )
        objective = contrastive(objectives_of(target.recipe))
        if objective is None:
            raise RecipeError(
                "the model was not trained to embed images and texts",
                where=str(target.folder),
                fix="train with an objective of the kind itc",
            )
        make_ready(target, objective)
        return cls.of(target.model, target.processor, objective, target.recipe)

    def images(self, images: Sequence[ImageRef], progress: Progress | None = None) -> Tensor:
        """Float32 (images, dimension) on the CPU, L2-normalised."""
        return self.objective.image_embeddings(self._bench(progress), images)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Float32 (texts, dimension) on the CPU, L2-normalised."""
        return self.objective.text_embeddings(self.bench, texts)

    def _bench(self, progress: Progress | None) -> EvaluationBench:
        return dataclasses.replace(self.bench, progress=progress)


def contrastive(objectives: Mapping[str, Objective]) -> ImageText | None:
    """The first contrastive objective of a run, or None; those of one run share what embeds."""
    return next((one for one in objectives.values() if isinstance(one, ImageText)), None)
