"""Asks a model about images from Python: paths or pictures and questions in, answers out."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from lockadapt.architectures import inputs_of
from lockadapt.data.model_encoder import model_encoder
from lockadapt.data.pixels import PixelInputs, ProcessorInputs, pixel_inputs
from lockadapt.data.sample import ImageRef, Sample, question_answer
from lockadapt.errors import DataError, RecipeError
from lockadapt.evaluation.conversation_images import ConversationImages, file_key
from lockadapt.evaluation.predict import SamplePredictor
from lockadapt.evaluation.target import open_target
from lockadapt.runs.run import LoadedRun, Run

MAX_PIXELS = 50_000_000
"""Larger images are refused before they are decoded."""

Picture = str | Path | Image.Image
"""A file, or a picture in any mode; it is put on white and turned upright by its EXIF, as in training."""


class Predictor:
    """A model that answers questions about images.

    Prompts are written as in training: images, question, chat template of the processor. Answers
    are greedy, so the same question gets the same answer.

    Args:
        source: a run folder, a model folder such as a merged one, or what `lockadapt.load_run` returned.
        batch_size: questions that are answered at a time.

    Raises:
        RecipeError: the run is not finished, or the model is a dual encoder, which answers nothing.
        VerificationError: the run is damaged.
    """

    def __init__(self, source: str | Path | Run | LoadedRun, *, batch_size: int = 64) -> None:
        target = open_target(source)
        require_answers(target.processor, str(target.folder))
        allowed = target.experiment is not None and target.experiment.data.allow_special_tokens
        self._set(sample_predictor(target.model, target.processor, batch_size, allowed))

    @classmethod
    def of_model(cls, model: Any, processor: Any, *, batch_size: int = 64) -> Predictor:
        """Ask a model that is in memory, such as that of `lockadapt.assemble` or of a `GroundingTrainer`.

        Args:
            model: a Transformers model, wrapped by PEFT or not; it is put into evaluation mode to answer.
            processor: the model's.
            batch_size: questions that are answered at a time.

        Returns:
            The predictor.

        Raises:
            RecipeError: the model is a dual encoder.
        """
        require_answers(processor, "model")
        made = cls.__new__(cls)
        made._set(sample_predictor(model, processor, batch_size, allow_special_tokens=False))
        return made

    def _set(self, predictor: SamplePredictor) -> None:
        pixels = predictor.images
        assert isinstance(pixels, (PixelInputs, ProcessorInputs))
        self._predictor = predictor
        self._images = ConversationImages(predictor.model, predictor.encoder, pixels)

    def answer(
        self,
        image: Picture | Sequence[Picture] | None,
        question: str,
        *,
        choices: Sequence[str] | None = None,
        max_new_tokens: int = 64,
    ) -> str:
        """Answer one question.

        Args:
            image: what it is about: one image, several, or None.
            question: the text of the turn, without image markers.
            choices: answers to choose from by their likelihood; default: the answer is generated.
            max_new_tokens: longest generated answer, in tokens.

        Returns:
            The answer, without special tokens and outer spaces.

        Raises:
            DataError: an image is missing or damaged, or the question holds the image marker.
            SafetyError: an image has too many pixels.
        """
        return self.answers([image], [question], choices=choices, max_new_tokens=max_new_tokens)[0]

    def answers(
        self,
        images: Sequence[Picture | Sequence[Picture] | None],
        questions: Sequence[str],
        *,
        choices: Sequence[str] | None = None,
        max_new_tokens: int = 64,
    ) -> list[str]:
        """Answer many questions in batches. Questions about the same images share one pass over them.

        Args:
            images: for each question one image, several, or None.
            questions: as many as there are entries in `images`.
            choices: answers to choose from by their likelihood, the same for all questions; default: answers
                are generated.
            max_new_tokens: longest generated answer, in tokens.

        Returns:
            An answer for each question, in order.

        Raises:
            DataError: as `answer`; or there are not as many images as questions, or no choices.
            SafetyError: an image has too many pixels.
        """
        if len(images) != len(questions):
            raise DataError(
                f"{len(images)} images for {len(questions)} questions",
                where="answers",
                fix="give an entry for each question; None for no image",
            )
        pairs = enumerate(zip(images, questions, strict=True))
        samples = [self._sample(number, shown, question) for number, (shown, question) in pairs]
        if choices is not None and not choices:
            raise DataError("choices is empty", where="answers", fix="name some answers, or leave it out")
        predictor = dataclasses.replace(self._predictor, images=self._images.of(samples))
        if choices is None:
            return predictor.generate(samples, max_new_tokens)
        return predictor.rank(samples, list(choices))

    def _sample(self, number: int, shown: Picture | Sequence[Picture] | None, question: str) -> Sample:
        where = f"question {number}"
        self._predictor.encoder.refuse_marker(question, "question holds the marker", where)
        if shown is None:
            shown = []
        elif isinstance(shown, Picture):
            shown = [shown]
        # The empty answer only marks whose turn it is; what stands before it is the prompt.
        return question_answer(question, "", [image_reference(image, where) for image in shown], where)


def require_answers(processor: Any, where: str) -> None:
    """Refuses a dual encoder, which answers nothing, with `RecipeError`."""
    if inputs_of(processor).apart:
        raise RecipeError(
            "a dual encoder embeds and answers nothing", where=where, fix="search with `lockadapt search`"
        )


def sample_predictor(
    model: Any, processor: Any, batch_size: int, allow_special_tokens: bool
) -> SamplePredictor:
    """What answers samples, with images as pixels.

    Args:
        model: a Transformers model, possibly wrapped by PEFT.
        processor: the model's.
        batch_size: prompts at a time.
        allow_special_tokens: whether questions may spell control tokens out.

    Returns:
        The predictor.
    """
    encoder = model_encoder(model, processor, None, allow_special_tokens)
    return SamplePredictor(model, encoder, pixel_inputs(processor, MAX_PIXELS), batch_size)


def image_reference(picture: Picture, where: str) -> ImageRef:
    """Names a picture or a file by what it shows now, so that equal ones are read once.

    Args:
        picture: see `Picture`; it is copied.
        where: for messages.

    Returns:
        The reference.

    Raises:
        DataError: the picture is damaged.
    """
    if isinstance(picture, Image.Image):
        held = _upright(picture, where)
        pixels = f"{held.mode} {held.size}".encode() + held.tobytes()
        return ImageRef(hashlib.sha256(pixels).hexdigest(), picture=held)
    path = Path(picture).absolute()
    return ImageRef(file_key(path), path=path)


def _upright(picture: Image.Image, where: str) -> Image.Image:
    """A copy, as pictures are turned in place when they are shown, which the caller's must not be."""
    try:
        picture.load()
    except OSError as error:
        raise DataError("the picture is damaged or cut off", where=where, fix="open it again") from error
    with contextlib.suppress(Exception):  # broken EXIF says nothing about the pixels
        return ImageOps.exif_transpose(picture)
    return picture.copy()
