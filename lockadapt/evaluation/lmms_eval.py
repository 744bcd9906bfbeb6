"""Runs and merged folders as models of lmms-eval, which finds them by the entry point `lmms_eval.models`.

lmms-eval calls `manifest` when it collects its models, and imports the classes when one is asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from lmms_eval.api.model import lmms
from loguru import logger
from PIL import Image

from lockadapt.data.sample import ImageRef, Sample, Turn
from lockadapt.errors import DataError, RecipeError
from lockadapt.evaluation.conversation_images import ConversationImages
from lockadapt.evaluation.predict import SamplePredictor
from lockadapt.evaluation.predictor import image_reference, require_answers, sample_predictor
from lockadapt.evaluation.target import open_target

AT_ONCE = 16
"""Batches whose pictures are in memory at a time: questions about one picture stand near one another."""


def manifest() -> Any:
    """The model `lockadapt`, which is asked by messages.

    Returns:
        The `ModelManifest`.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("lockadapt", chat_class_path=f"{__name__}.Lockadapt")


class Lockadapt(lmms):
    """A run or a model folder that answers messages, greedily and in batches.

    Args:
        pretrained: run folder, or model folder such as a merged one.
        batch_size: questions at a time.
        max_new_tokens: longest answer, where a task says nothing.
        device: where the model goes; default: the GPU of this process, if there is one.
        max_batch_size: what lmms-eval passes beside `batch_size`; not used.

    Raises:
        RecipeError: the run is not finished, or the model is a dual encoder.
        VerificationError: the run is damaged.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 16,
        max_new_tokens: int | str = 256,
        device: str | None = None,
        max_batch_size: int | str | None = None,
    ) -> None:
        super().__init__()
        # Sets the GPU of this process, on which the model is opened, and gathers answers afterwards.
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        target = open_target(pretrained)
        require_answers(target.processor, pretrained)
        if device is not None and self._world_size == 1:
            target.model.to(device)
        allowed = target.experiment is not None and target.experiment.data.allow_special_tokens
        self.predictor = sample_predictor(target.model, target.processor, int(batch_size), allowed)
        self.longest = int(max_new_tokens)
        pixels: Any = self.predictor.images
        self._images = ConversationImages(target.model, self.predictor.encoder, pixels)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer requests, in order; an answer ends before the first of the task's `until` texts.

        Args:
            requests: lmms-eval's instances.

        Returns:
            The answers.

        Raises:
            DataError: a message holds something other than text and images.
        """
        answers: dict[int, str] = {}
        groups: dict[int, list[int]] = {}
        options = [request.args[2] or {} for request in requests]
        for number, given in enumerate(options):
            groups.setdefault(int(given.get("max_new_tokens") or self.longest), []).append(number)
        if any(given.get("do_sample") or (given.get("temperature") or 0) > 0 for given in options):
            logger.warning("the task asks for sampled answers; lockadapt answers greedily")
        step = AT_ONCE * self.predictor.batch_size
        for length, numbers in groups.items():
            for start in range(0, len(numbers), step):
                part = numbers[start : start + step]
                samples = [self._sample(requests[number].args) for number in part]
                for number, text in zip(part, self._with(samples).generate(samples, length), strict=True):
                    answers[number] = _until(text, options[number].get("until"))
                    key = (requests[number].args[0], options[number])
                    self.cache_hook.add_partial("generate_until", key, answers[number])
        return [answers[number] for number in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not supported: lmms-eval 0.7.3 turns the pairs that it asks for into texts, whatever the model.

        Args:
            requests: lmms-eval's instances.

        Returns:
            Nothing.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("lockadapt answers tasks whose output_type is generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not supported.

        Args:
            requests: lmms-eval's instances.

        Returns:
            Nothing.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("lockadapt answers tasks of one round")

    def _sample(self, arguments: Sequence[Any]) -> Sample:
        _, messages_of, _, number, task, split = arguments
        return _conversation(messages_of(self.task_dict[task][split][number]), f"{task}, document {number}")

    def _with(self, samples: Sequence[Sample]) -> SamplePredictor:
        for sample in samples:
            for turn in sample.turns:
                self.predictor.encoder.refuse_marker(turn.text, "text holds the marker", sample.where)
        return dataclasses.replace(self.predictor, images=self._images.of(samples))


def _conversation(messages: Sequence[Mapping[str, Any]], where: str) -> Sample:
    """Messages as a sample whose next turn is the assistant's."""
    images: list[ImageRef] = []
    turns: list[Turn] = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        text, places = "", []
        for part in parts:
            if part["type"] == "text":
                text += part["text"]
            elif part["type"] == "image" and isinstance(part["url"], (str, Image.Image)):
                images.append(image_reference(part["url"], where))
                places.append(len(text))
            else:
                raise DataError(
                    f"the message holds {part['type']}, which the model cannot read",
                    where=where,
                    fix="choose a task of texts and images",
                )
        turns.append(Turn(message["role"], text, len(places), tuple(places) if any(places) else ()))
    if not turns or turns[-1].role != "user":
        raise RecipeError(
            "the last message is not the user's", where=where, fix="choose a task that asks something"
        )
    # The empty answer only marks whose turn it is.
    return Sample(tuple(images), (*turns, Turn("assistant", "")), where)


def _until(text: str, stops: Any) -> str:
    """The text up to the first of the texts that end an answer."""
    for stop in filter(None, [stops] if isinstance(stops, str) else stops or ()):
        text = text.split(stop)[0]
    return text
