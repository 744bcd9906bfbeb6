"""A conversation about images with a run or a stock folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lockadapt.architectures.blocks import context_length
from lockadapt.data.encode import Encoder
from lockadapt.data.pixels import PixelInputs, ProcessorInputs, pixel_inputs
from lockadapt.data.sample import ImageRef, Sample, Turn
from lockadapt.errors import DataError
from lockadapt.evaluation.predict import SamplePredictor
from lockadapt.evaluation.target import open_target

MAX_PIXELS = 50_000_000


@dataclass
class Chat:
    """Keeps pictures and turns; every answer is greedy and sees all pictures and turns before it.

    Attributes:
        images: shown so far; the last `waiting` of them belong to the next turn.
    """

    predictor: SamplePredictor
    pixels: PixelInputs | ProcessorInputs
    max_new_tokens: int
    images: list[ImageRef] = field(default_factory=list)
    waiting: int = 0
    turns: list[Turn] = field(default_factory=list)

    @classmethod
    def open(cls, target: Path, images: Sequence[Path], max_new_tokens: int) -> Chat:
        """Opens model and images; the images belong to the first turn.

        Args:
            target: a run folder or a stock folder.
            images: of the first turn.
            max_new_tokens: of an answer.

        Returns:
            A conversation without turns.

        Raises:
            DataError: an image is missing or damaged.
        """
        for image in images:
            _check(image)  # before a model is loaded
        opened = open_target(target)
        pixels = pixel_inputs(opened.processor, MAX_PIXELS)
        allowed = opened.experiment is not None and opened.experiment.data.allow_special_tokens
        encoder = Encoder(opened.processor, context_length(opened.model), allowed)
        chat = cls(SamplePredictor(opened.model, encoder, pixels), pixels, max_new_tokens)
        for image in images:
            chat.show(image)
        return chat

    def show(self, image: Path) -> None:
        """Adds a picture to the next turn.

        Args:
            image: file.

        Raises:
            DataError: it is missing or damaged.
            SafetyError: it has too many pixels.
        """
        _check(image)
        reference = ImageRef(str(image), path=image)
        self.pixels.picture(reference)
        self.images.append(reference)
        self.waiting += 1

    def ask(self, question: str) -> str:
        """Answers the next question.

        Args:
            question: the next turn's text.

        Returns:
            The answer.

        Raises:
            DataError: pictures and turns fill the LLM's context, or the question holds the image marker.
                Question and waiting pictures are dropped, and the conversation is what it was before them.
        """
        before = self.images[: len(self.images) - self.waiting]
        turns = (*self.turns, Turn("user", question, images=self.waiting))
        # The empty answer only marks whose turn it is; `generate` looks at what stands before it.
        sample = Sample(tuple(self.images), (*turns, Turn("assistant", "")), where="chat")
        self.images, self.waiting = before, 0
        self.predictor.encoder.refuse_marker(question, "question holds the marker", "chat")
        answer = self.predictor.generate([sample], self.max_new_tokens)[0]
        self.images, self.turns = list(sample.images), [*turns, Turn("assistant", answer)]
        return answer


def _check(image: Path) -> None:
    if not image.is_file():
        raise DataError("there is no such image", where=str(image), fix="check --image")
