"""What evaluation lends to an objective: the model, its images, and answers to questions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lockadapt.data.encode import Encoder
from lockadapt.data.pixels import ImageInputs
from lockadapt.data.sample import Sample
from lockadapt.errors import RecipeError
from lockadapt.evaluation.predict import Predictor
from lockadapt.objectives.base import Progress
from lockadapt.objectives.draw import draw_codes
from lockadapt.objectives.drawing import Drawing


@dataclass(frozen=True)
class EvaluationBench:
    """See `lockadapt.objectives.base.Bench`.

    Attributes:
        method: `auto` ranks where a closed list is given, `rank` insists on one, `generate` never ranks.
        row_tokens: longest row of prompts that share their beginnings; None: nothing is shared.
    """

    model: nn.Module
    encoder: Encoder
    images: ImageInputs
    batch_size: int
    progress: Progress | None
    method: str = "auto"
    row_tokens: int | None = None

    def answers(
        self, samples: Sequence[Sample], closed: Sequence[str] | None, max_new_tokens: int
    ) -> list[str]:
        """Answers by ranking a closed list, or by greedy generation.

        Raises:
            RecipeError: ranking is asked for without a list.
        """
        predictor = Predictor(self.model, self.encoder, self.images, self.batch_size, self.row_tokens)
        if self.method == "rank" and closed is None:
            raise RecipeError(
                "ranking needs a closed list of answers",
                where="evaluation.method",
                fix="give objectives.….answers",
            )
        if closed is not None and self.method != "generate":
            return predictor.rank(samples, closed, self.progress)
        return predictor.generate(samples, max_new_tokens, self.progress)

    def draw(self, captions: Sequence[str], drawing: Drawing) -> Tensor:
        """See `lockadapt.objectives.draw.draw_codes`."""
        settings = dataclasses.replace(drawing, batch_size=self.batch_size)
        return draw_codes(self.model, self.encoder.processor, captions, settings, self.progress)
