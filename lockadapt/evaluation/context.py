"""What evaluation lends to an objective: the model, its images, and answers to questions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor, nn

from lockadapt.architectures import generation_of
from lockadapt.architectures.base import unwrap_model
from lockadapt.data.encode import Encoder
from lockadapt.data.images import open_image
from lockadapt.data.pixels import ImageInputs
from lockadapt.data.sample import Sample
from lockadapt.errors import RecipeError
from lockadapt.evaluation.predict import SamplePredictor
from lockadapt.evaluation.probe import TowerFeatures, at_side, probe_scores, train_probe
from lockadapt.objectives.base import Progress
from lockadapt.objectives.generate_images import generate_image_token_ids, pictures
from lockadapt.objectives.image_generation import ImageGenerationConfig

PROBE_IMAGES = 4000
"""Training images that a probe learns from at most."""


@dataclass(frozen=True)
class PredictionContext:
    """See `lockadapt.objectives.base.EvaluationContext`.

    Attributes:
        method: `auto` ranks where a closed list is given, `rank` insists on one, `generate` never ranks.
        max_row_tokens: longest row of prompts that share their beginnings; None: nothing is shared.
        training: the objective's training rows, which a probe learns from; None for no probe.
        max_pixels: larger images are refused before decoding.
        note: told what the user should know.
        beams: of generated answers; 1: greedy.
        dealt: whether all processes have this context and answer together.
    """

    model: nn.Module
    encoder: Encoder
    images: ImageInputs
    batch_size: int
    progress: Progress | None
    method: str = "auto"
    max_row_tokens: int | None = None
    training: Callable[[], Sequence[Sample]] | None = None
    max_pixels: int = 100_000_000
    note: Callable[[str], None] | None = None
    beams: int = 1
    dealt: bool = False

    def answers(
        self, samples: Sequence[Sample], closed: Sequence[str] | None, max_new_tokens: int
    ) -> list[str]:
        """Answers by ranking a closed list, or by generation.

        Args:
            samples: whose last turns are answered.
            closed: the answers to rank; None: generate.
            max_new_tokens: of a generated answer.

        Returns:
            An answer a sample, in order.

        Raises:
            RecipeError: ranking is asked for without a list.
        """
        predictor = SamplePredictor(
            self.model,
            self.encoder,
            self.images,
            self.batch_size,
            self.max_row_tokens,
            self.note,
            self.beams,
            self.dealt,
        )
        if self.method == "rank" and closed is None:
            raise RecipeError(
                "ranking needs a closed list of answers",
                where="evaluation.method",
                fix="give objectives.….answers",
            )
        if closed is not None and self.method != "generate":
            return predictor.rank(samples, closed, self.progress)
        return predictor.generate(samples, max_new_tokens, self.progress)

    def generate_images(self, captions: Sequence[str], config: ImageGenerationConfig) -> Tensor:
        """See `lockadapt.objectives.generate_images.generate_image_token_ids`."""
        settings = dataclasses.replace(config, batch_size=self.batch_size)
        return generate_image_token_ids(self.model, self.encoder.processor, captions, settings, self.progress)

    def probe(self, tower: str, samples: Sequence[Sample], image_token_ids: Tensor) -> dict[str, Any] | None:
        """Judges generated images by a probe on a tower, trained on the first `PROBE_IMAGES` training images.

        Args:
            tower: folder or Hub id of a vision model.
            samples: test rows, one image each.
            image_token_ids: what was generated for their captions, int64 (rows, tokens).

        Returns:
            See `probe_scores`; None without training rows.
        """
        if self.training is None:
            return None
        side = generation_of(self.model).codec(unwrap_model(self.model)).side

        def real(rows: Sequence[Sample]) -> list[Image.Image]:
            return at_side([open_image(row.images[0], self.max_pixels) for row in rows], side)

        features, learned = TowerFeatures(tower), list(self.training())[:PROBE_IMAGES]
        probe = train_probe(features(real(learned)), [row.answer for row in learned])
        processor, captions = self.encoder.processor, [row.answer for row in samples]
        generated = features(pictures(self.model, processor, image_token_ids))
        known = self.images([row.images[0] for row in samples])["image_token_ids"]
        tokenized = features(pictures(self.model, processor, known))
        return probe_scores(probe, generated, captions, features(real(samples)), captions, tokenized)
