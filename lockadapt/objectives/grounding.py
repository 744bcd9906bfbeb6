"""Grounding: where in an image something is, as boxes in the text of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from lockadapt.data.batch import Batch
from lockadapt.data.boxes import LOC_TOKENS, BoxFormat, BoxRules, Coordinates, parse_boxes, write_boxes
from lockadapt.data.encode import Encoder, EncodeReport
from lockadapt.data.sample import Sample
from lockadapt.data.whole_image import check_whole_image
from lockadapt.errors import RecipeError
from lockadapt.metrics.boxes import overlaps, score_boxes
from lockadapt.objectives.answer_tokens import answer_loss
from lockadapt.objectives.base import EvaluationContext, Objective, Progress, Report, Row, prediction_row


@dataclass(frozen=True)
class Grounding(Objective):
    """Cross-entropy of the boxes' text; scored by IoU.

    Attributes:
        box_format: text of a box, see `lockadapt.data.boxes.write_boxes`.
        coordinates: numbers of a box in rows, see `lockadapt.data.boxes.BoxRules`.
        jitter: largest shift of an edge of a training box.
        flip: whether the mirror image of each training row is learned as well.
        max_new_tokens: longest answer that evaluation generates.
    """

    kind: ClassVar[str] = "grounding"
    packs: ClassVar[bool] = True
    plannable: ClassVar[bool] = True

    box_format: BoxFormat = "qwen"
    coordinates: Coordinates = "xyxy"
    jitter: float = 0.0
    flip: bool = False
    max_new_tokens: int = 128

    @property
    def box_rules(self) -> BoxRules:
        """See `Objective.box_rules`."""
        return BoxRules(self.box_format, self.coordinates, self.jitter, self.flip)

    def encode(
        self, encoder: Encoder, samples: Sequence[Sample], progress: Progress | None = None
    ) -> EncodeReport:
        """Encodes conversations, where the processor shows whole images and the tokenizer knows the boxes.

        Args:
            encoder: of the model's processor.
            samples: rows with boxes.
            progress: told (done, all).

        Returns:
            The encoded rows, and what became of the others.

        Raises:
            AssemblyError: the image processor crops or pads.
            RecipeError: the tokenizer lacks the tokens of the format, or loses its brackets or digits.
        """
        self._check(encoder)
        return super().encode(encoder, samples, progress)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, Report]:
        """See `answer_loss`."""
        return answer_loss(model, batch)

    def evaluate(
        self, context: EvaluationContext, samples: Sequence[Sample]
    ) -> tuple[dict[str, Any], list[Row]]:
        """Generates an answer for each phrase, and scores its boxes by `score_boxes`.

        Args:
            context: gives the answers.
            samples: rows with boxes.

        Returns:
            Scores, and rows with `boxes`, the predicted ones in thousandths, and `iou`, the mean over true
            boxes.

        Raises:
            AssemblyError, RecipeError: as `encode`.
        """
        self._check(context.encoder)
        answers = context.answers(samples, None, self.max_new_tokens)
        predicted = [parse_boxes(answer, self.box_format) for answer in answers]
        rows: list[Row] = []
        for sample, answer, boxes in zip(samples, answers, predicted, strict=True):
            ious = overlaps(boxes, sample.boxes)
            shown = [[round(1000 * edge, 1) for edge in box] for box in boxes]
            rows.append({**prediction_row(sample, answer), "boxes": shown, "iou": sum(ious) / len(ious)})
        return score_boxes(predicted, [sample.boxes for sample in samples]), rows

    def _check(self, encoder: Encoder) -> None:
        check_whole_image(encoder.processor)
        tokenizer = encoder.tokenizer
        if self.box_format != "paligemma":
            text = write_boxes([(0.012, 0.345, 0.678, 0.9)], self.box_format)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            spelled = tokenizer.decode(ids, skip_special_tokens=True)
            if parse_boxes(spelled, self.box_format) != parse_boxes(text, self.box_format):
                raise RecipeError(
                    f"the tokenizer makes {spelled!r} of {text!r}, in which no box can be read",
                    where="box_format",
                    fix="write another `box_format`, or use an LLM whose tokenizer knows brackets and digits",
                )
            return
        known = tokenizer.get_vocab()
        lacking = next((token for token in LOC_TOKENS if token not in known), None)
        if lacking is not None:
            raise RecipeError(
                f"the tokenizer has no token {lacking}",
                where="box_format",
                fix="write `box_format: qwen` or `plain`, or start from a model whose tokenizer has location "
                "tokens, such as PaliGemma",
            )
        special = set(tokenizer.all_special_tokens) | {
            str(token) for token in tokenizer.added_tokens_decoder.values() if token.special
        }
        if special & set(LOC_TOKENS):
            raise RecipeError(
                "the tokenizer's location tokens are special, so generated text leaves them out",
                where="box_format",
                fix="write `box_format: qwen` or `plain`",
            )
