"""Embeds images and texts with a run or a merged folder, as its contrastive objective does."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load, save
from torch import Tensor, nn

from lockadapt import processes
from lockadapt.building.experiment import Experiment
from lockadapt.data.model_encoder import model_encoder
from lockadapt.data.pixels import PixelInputs
from lockadapt.data.sample import ImageRef
from lockadapt.errors import DataError, RecipeError, SafetyError
from lockadapt.evaluation.context import PredictionContext
from lockadapt.evaluation.target import Target, make_ready
from lockadapt.objectives import ImageText, Objective
from lockadapt.objectives.base import Progress


@dataclass
class _Opened:
    """Image inputs of images opened and preprocessed before: pixel values (3, side, side) by key."""

    values: dict[str, Tensor]
    replacement: Image.Image | None = None

    def __call__(self, images: Sequence[ImageRef]) -> dict[str, Tensor]:
        return {"pixel_values": torch.stack([self.values[image.key] for image in images])}


@dataclass(frozen=True)
class Embedder:
    """A model with its contrastive objective."""

    objective: ImageText
    context: PredictionContext

    @classmethod
    def of(cls, model: nn.Module, processor: Any, objective: ImageText, experiment: Experiment) -> Embedder:
        """A model that the objective has prepared."""
        encoder = model_encoder(
            model, processor, experiment.data.max_length, experiment.data.allow_special_tokens
        )
        images = PixelInputs(processor.image_processor, experiment.data.max_pixels)
        size = experiment.evaluation.batch_size
        return cls(objective, PredictionContext(model.eval(), encoder, images, size, None))

    @classmethod
    def open(cls, target: Target) -> Embedder:
        """Opens the embedder of a run or of a merged folder.

        Args:
            target: an opened run or merged folder.

        Returns:
            The embedder.

        Raises:
            RecipeError: the model was not trained to embed, or nothing says how.
        """
        if target.experiment is None:
            raise RecipeError(
                "the folder does not say which recipe it was trained with",
                where=str(target.folder),
                fix="name a run with an objective of the kind itc, or a folder merged from one",
            )
        objective = contrastive(target.experiment.objectives)
        if objective is None:
            raise RecipeError(
                "the model was not trained to embed images and texts",
                where=str(target.folder),
                fix="train with an objective of the kind itc",
            )
        make_ready(target, objective)
        return cls.of(target.model, target.processor, objective, target.experiment)

    def images(self, images: Sequence[ImageRef]) -> Tensor:
        """See `ImageText.image_embeddings`."""
        return self.objective.image_embeddings(self.context, images)

    def readable(
        self, images: Sequence[ImageRef], progress: Progress | None = None
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Embeds all that can be opened, (dimension,) by key; says what is wrong with the others, by key.

        Every image is opened once, and no more than a batch of them is in memory. Embeddings of an image's
        tokens stand behind one another, (tokens * dimension,). Where `context.dealt` says so, all processes
        call with the same images, and each embeds its share of the batches.
        """
        made: dict[str, Tensor] = {}
        wrong: dict[str, str] = {}
        size = self.context.batch_size
        starts: Sequence[int] = range(0, len(images), size)
        for start in processes.dealt(starts) if self.context.dealt else starts:
            values: dict[str, Tensor] = {}
            for image in images[start : start + size]:
                try:
                    values[image.key] = self.context.images([image])["pixel_values"][0]
                except (DataError, SafetyError) as error:
                    wrong[image.key] = error.message
            good = [image for image in images[start : start + size] if image.key in values]
            if good:
                context = dataclasses.replace(self.context, images=_Opened(values))
                rows = self.objective.image_embeddings(context, good)
                made |= dict(zip([image.key for image in good], rows.flatten(1), strict=True))
            if progress:
                progress(min(start + size, len(images)), len(images))
        if self.context.dealt and processes.count() > 1:
            own = save({key: row.clone() for key, row in made.items()})
            parts = map(load, processes.gather_bytes(own))
            made = {key: row for part in parts for key, row in part.items()}
            reasons = processes.gather_bytes(json.dumps(wrong).encode())
            wrong = {key: reason for part in reasons for key, reason in json.loads(part).items()}
        return made, wrong

    def texts(self, texts: Sequence[str]) -> Tensor:
        """See `ImageText.text_embeddings`."""
        return self.objective.text_embeddings(self.context, texts)


def contrastive(objectives: Mapping[str, Objective]) -> ImageText | None:
    """The first contrastive objective of a run, or None; those of one run share what embeds."""
    return next((objective for objective in objectives.values() if isinstance(objective, ImageText)), None)
