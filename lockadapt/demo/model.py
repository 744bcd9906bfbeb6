"""What the demo's page asks of a model: streamed answers, nearest images, generated images; one at a time."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from transformers import TextIteratorStreamer

from lockadapt.architectures import inputs_of, layout_of
from lockadapt.console import Reporter
from lockadapt.data.images import open_image
from lockadapt.data.sample import ImageRef, Turn
from lockadapt.errors import DataError, RecipeError
from lockadapt.evaluation.chat import MAX_PIXELS, Chat
from lockadapt.evaluation.conversation_images import file_key
from lockadapt.evaluation.embedder import contrastive
from lockadapt.evaluation.generate import check_generates, check_prompts
from lockadapt.evaluation.search import Queries, SearchedFolder
from lockadapt.evaluation.target import Target, open_target
from lockadapt.objectives.answer_tokens import AnswerObjective
from lockadapt.objectives.generate_images import generate_images
from lockadapt.objectives.image_generation import ImageGenerationConfig

MAX_QUESTION, MAX_IMAGES, MAX_DRAWN, RESULTS = 4096, 8, 8, 12
"""Characters of a question, images of a conversation, images drawn at once, images that a search shows."""


@dataclass(frozen=True)
class Exchange:
    """A question of the conversation so far, the images that came with it, and its answer."""

    images: Sequence[Path]
    question: str
    answer: str


@dataclass(frozen=True)
class DemoModel:
    """A model that a page asks.

    Attributes:
        target: the opened model.
        chat: a conversation without turns; None: the model does not answer.
        searched: the folder that is searched; None: no folder, or the model does not embed.
        draws: whether it generates images.
    """

    target: Target
    chat: Chat | None
    searched: SearchedFolder | None
    draws: bool
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(cls, target: Path, images: Path | None, max_new_tokens: int) -> DemoModel:
        """Opens a model for all that it was trained to do.

        Args:
            target: a run or a model folder.
            images: folder to search; None: there is no search.
            max_new_tokens: of an answer.

        Returns:
            The model.

        Raises:
            RecipeError: the run is not finished, there is nothing that a page could ask the model for, or
                `images` is given for a model that does not embed.
            DataError: `images` is no folder.
        """
        opened = open_target(target)
        objectives = {} if opened.experiment is None else opened.experiment.objectives
        answers = not objectives or any(isinstance(each, AnswerObjective) for each in objectives.values())
        chat = None
        if answers and not inputs_of(opened.processor).apart:
            chat = Chat.of(opened, max_new_tokens)
        searched = None
        if images is not None:
            if not images.is_dir():
                raise DataError("there is no such folder", where=f"--images {images}", fix="name a folder")
            searched = SearchedFolder.open(opened, images, None)
        draws = bool(layout_of(opened.model).generation)
        if chat is None and searched is None and not draws:
            embeds = contrastive(objectives) is not None
            raise RecipeError(
                "the model only embeds images and texts" if embeds else "the model does nothing to show",
                where=str(target),
                fix="name a folder to search: --images FOLDER" if embeds else "name another run",
            )
        return cls(opened, chat, searched, draws)

    @property
    def tabs(self) -> list[str]:
        """Names of what it can do, in the order of the page."""
        can = {"chat": self.chat is not None, "search": self.searched is not None, "draw": self.draws}
        return [name for name, able in can.items() if able]

    def stream(self, history: Sequence[Exchange], images: Sequence[Path], question: str) -> Iterator[str]:
        """Answers the next question of a conversation.

        Args:
            history: exchanges so far.
            images: files that come with the question.
            question: its text.

        Yields:
            The answer so far; at the end, the whole one.

        Raises:
            DataError: an image is missing or damaged, there are too many, or the question is empty or too
                long.
            SafetyError: an image has too many pixels.
        """
        assert self.chat is not None
        _check_text(question, "question")
        shown = [ImageRef(file_key(path), path=path) for past in history for path in past.images]
        if len(shown) + len(images) > MAX_IMAGES:
            raise DataError(
                f"more than {MAX_IMAGES} images in a conversation", where="chat", fix="start a new one"
            )
        turns = [
            turn
            for past in history
            for turn in (Turn("user", past.question, len(past.images)), Turn("assistant", past.answer))
        ]
        chat = dataclasses.replace(self.chat, images=shown, turns=turns, waiting=0)
        for path in images:
            chat.show(path)
        yield from self._streamed(chat, question)

    def _streamed(self, chat: Chat, question: str) -> Iterator[str]:
        streamer = TextIteratorStreamer(
            self.target.processor.tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        outcome: list[str | BaseException] = []

        def answer() -> None:
            try:
                with self._one_at_a_time:
                    outcome.append(chat.ask(question, streamer))
            except BaseException as error:  # told to the reader of the stream, below
                outcome.append(error)
            finally:
                streamer.end()

        worker = threading.Thread(target=answer, daemon=True)
        worker.start()
        text = ""
        for part in streamer:
            text += part
            yield text
        worker.join()
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        yield outcome[0]

    def search(self, text: str, image: Path | None) -> list[tuple[Image.Image, str]]:
        """Finds the nearest images of the folder, each with its name and score.

        Args:
            text: what is searched for; empty: `image` is.
            image: a file.

        Returns:
            Images and captions, the nearest first.

        Raises:
            DataError: nothing is searched for, or the image is missing or damaged.
        """
        assert self.searched is not None
        if image is None:
            _check_text(text, "text")
        queries = Queries([text]) if image is None else Queries(pictures=[image])
        with self._one_at_a_time:
            hits = self.searched.find(queries, RESULTS, Reporter(quiet=True))["searches"][0]["results"]
        paths = [(self.searched.images / hit["file"], hit) for hit in hits]
        return [
            (open_image(ImageRef(str(path), path=path), MAX_PIXELS), f"{hit['file']}  {hit['score']:.3f}")
            for path, hit in paths
        ]

    def draw(self, prompt: str, count: int, seed: int) -> list[Image.Image]:
        """Generates images of a prompt.

        Args:
            prompt: a line.
            count: of images, at most `MAX_DRAWN`.
            seed: of the sampling.

        Returns:
            The images.

        Raises:
            DataError: the prompt is empty, too long, or spells a control token out.
        """
        check_prompts([prompt])
        check_generates(self.target, [prompt])
        config = ImageGenerationConfig(seed)
        prompts = [prompt] * min(max(count, 1), MAX_DRAWN)
        with self._one_at_a_time:
            return generate_images(self.target.model, self.target.processor, prompts, config)


def _check_text(text: str, what: str) -> None:
    if not text.strip() or len(text) > MAX_QUESTION:
        raise DataError(
            f"the {what} has {len(text):,} characters",
            where="the page",
            fix=f"write between 1 and {MAX_QUESTION:,}",
        )
