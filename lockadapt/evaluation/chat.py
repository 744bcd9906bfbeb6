"""A conversation about one image with a run or a stock folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lockadapt.data.encode import Encoder
from lockadapt.data.pixels import PixelInputs
from lockadapt.data.sample import ImageRef, Sample, Turn
from lockadapt.errors import DataError
from lockadapt.evaluation.predict import Predictor
from lockadapt.evaluation.target import open_target
from lockadapt.training.rows import context_length

MAX_PIXELS = 50_000_000


@dataclass
class Chat:
    """Keeps the turns; every answer is greedy and sees the image and all turns before it."""

    predictor: Predictor
    image: ImageRef
    max_new_tokens: int
    turns: list[Turn] = field(default_factory=list)

    @classmethod
    def open(cls, target: Path, image: Path, max_new_tokens: int) -> Chat:
        """Opens model and image.

        Raises:
            DataError: the image is missing or damaged.
        """
        if not image.is_file():
            raise DataError("there is no such image", where=str(image), fix="check --image")
        opened = open_target(target)
        pixels = PixelInputs(opened.processor.image_processor, MAX_PIXELS)
        reference = ImageRef(str(image), path=image)
        pixels.picture(reference)
        encoder = Encoder(opened.processor, context_length(opened.model))
        return cls(Predictor(opened.model, encoder, pixels), reference, max_new_tokens)

    def ask(self, question: str) -> str:
        """The answer to the next question."""
        self.turns.append(Turn("user", question, images=0 if self.turns else 1))
        # The empty answer only marks whose turn it is; `generate` looks at what stands before it.
        sample = Sample((self.image,), (*self.turns, Turn("assistant", "")), where="chat")
        answer = self.predictor.generate([sample], self.max_new_tokens)[0]
        self.turns.append(Turn("assistant", answer))
        return answer
