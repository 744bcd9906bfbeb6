"""A conversation about images with a run or a stock folder."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from lockadapt.data.boxes import parse_boxes
from lockadapt.data.model_encoder import model_encoder
from lockadapt.data.pixels import PixelInputs, ProcessorInputs, pixel_inputs
from lockadapt.data.sample import ImageRef, Sample, Turn
from lockadapt.errors import DataError, RecipeError
from lockadapt.evaluation.conversation_images import ConversationImages, file_key
from lockadapt.evaluation.predict import SamplePredictor
from lockadapt.evaluation.target import Target, open_target
from lockadapt.files import write_bytes

MAX_PIXELS = 50_000_000
BOX_COLOUR = (255, 0, 80)


@dataclass
class Chat:
    """Keeps pictures and turns; every answer is greedy and sees all pictures and turns before it.

    Attributes:
        kept: what the frozen parts made of the pictures, where that may be kept.
        images: shown so far; the last `waiting` of them belong to the next turn.
    """

    predictor: SamplePredictor
    pixels: PixelInputs | ProcessorInputs
    max_new_tokens: int
    kept: ConversationImages
    images: list[ImageRef] = field(default_factory=list)
    waiting: int = 0
    turns: list[Turn] = field(default_factory=list)

    @classmethod
    def open(
        cls,
        target: Path,
        images: Sequence[Path],
        max_new_tokens: int,
        note: Callable[[str], None] | None = None,
    ) -> Chat:
        """Opens model and images; the images belong to the first turn.

        Args:
            target: a run folder or a stock folder.
            images: of the first turn.
            max_new_tokens: of an answer.
            note: told where pictures are read anew for every question, and why.

        Returns:
            A conversation without turns.

        Raises:
            DataError: an image is missing or damaged.
        """
        for image in images:
            _check(image)  # before a model is loaded
        chat = cls.of(open_target(target), max_new_tokens, note)
        for image in images:
            chat.show(image)
        return chat

    @classmethod
    def of(cls, opened: Target, max_new_tokens: int, note: Callable[[str], None] | None = None) -> Chat:
        """A conversation without turns with a model that is open already.

        Args:
            opened: the model.
            max_new_tokens: of an answer.
            note: see `open`.

        Returns:
            The conversation.
        """
        pixels = pixel_inputs(opened.processor, MAX_PIXELS)
        allowed = opened.experiment is not None and opened.experiment.data.allow_special_tokens
        encoder = model_encoder(opened.model, opened.processor, None, allowed)
        opened.model.eval()
        kept = ConversationImages(opened.model, encoder, pixels, note)
        return cls(SamplePredictor(opened.model, encoder, pixels), pixels, max_new_tokens, kept)

    def show(self, image: Path) -> None:
        """Adds a picture to the next turn.

        Args:
            image: file.

        Raises:
            DataError: it is missing or damaged.
            SafetyError: it has too many pixels.
        """
        _check(image)
        reference = ImageRef(file_key(image), path=image)
        self.pixels.picture(reference)
        self.images.append(reference)
        self.waiting += 1

    def draw_boxes(self, answer: str, file: Path) -> int:
        """Draws the boxes that an answer names on the last picture that was shown, and writes the result.

        Args:
            answer: may hold boxes in any of the formats of `parse_boxes`.
            file: of a format that Pillow writes, replaced if it exists.

        Returns:
            How many boxes there are; nothing is written where there is none.

        Raises:
            DataError: there are boxes, but no picture was shown.
            DiskError: the file cannot be written.
        """
        boxes = parse_boxes(answer)
        if not boxes:
            return 0
        if not self.images:
            raise DataError("the answer names boxes, but no image was shown", where="chat", fix="add --image")
        picture = self.pixels.picture(self.images[-1]).copy()
        brush, (width, height) = ImageDraw.Draw(picture), picture.size
        for left, top, right, bottom in boxes:
            corners = (left * width, top * height, right * width - 1, bottom * height - 1)
            x, y = corners[:2]
            edges = (x, y, max(x, corners[2]), max(y, corners[3]))
            brush.rectangle(edges, outline=BOX_COLOUR, width=max(1, min(width, height) // 150))
        coded = io.BytesIO()
        picture.save(coded, format=picture_format(file))
        write_bytes(file, coded.getvalue(), fix="choose another file for --boxes")
        return len(boxes)

    def ask(self, question: str, streamer: Any = None) -> str:
        """Answers the next question.

        Args:
            question: the next turn's text.
            streamer: a Transformers `BaseStreamer` that gets the answer's tokens as they come; None: nobody.

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
        predictor = replace(self.predictor, images=self.kept.of([sample]))
        if streamer is None:
            answer = predictor.generate([sample], self.max_new_tokens)[0]
        else:
            answer = predictor.stream(sample, self.max_new_tokens, streamer)
        self.images, self.turns = list(sample.images), [*turns, Turn("assistant", answer)]
        return answer


def picture_format(file: Path) -> str:
    """The format that Pillow writes by a file's name.

    Args:
        file: the name.

    Returns:
        Such as `PNG`.

    Raises:
        RecipeError: there is none for it.
    """
    format = Image.registered_extensions().get(file.suffix.lower())
    if format not in ("PNG", "JPEG", "WEBP"):
        raise RecipeError(
            f"no image is written by the name {file.name!r}",
            where="--boxes",
            fix="name a .png, .jpg or .webp file",
        )
    return format


def _check(image: Path) -> None:
    if not image.is_file():
        raise DataError("there is no such image", where=str(image), fix="check --image")
