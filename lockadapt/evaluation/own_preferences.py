"""Preferences of a model's own making: the answers of rows, and the wrong ones that it gives to them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from lockadapt.architectures.base import unwrap_model
from lockadapt.data.encode import Encoder
from lockadapt.data.pixels import ImageInputs
from lockadapt.data.readers.source import IMAGE_MARK
from lockadapt.data.sample import Sample, message
from lockadapt.errors import AssemblyError, DataError
from lockadapt.files import write_text
from lockadapt.models.chat_template import without_thought
from lockadapt.objectives.base import Progress
from lockadapt.rewards.vqa import VqaReward
from lockadapt.training.methods.rollout import Rollout, prompt_of, writing


@dataclass(frozen=True)
class AnswerDraws:
    """How a model answers the rows that preferences are made of.

    Attributes:
        answers: to each row.
        temperature: of sampling; 0: greedy, for which one answer is enough.
        pairs: preferences of a row at most, its most frequent wrong answers first.
        max_new_tokens: longest answer.
        batch_size: answers that are written at a time.
        seed: of sampling.
    """

    answers: int = 8
    temperature: float = 1.0
    pairs: int = 1
    max_new_tokens: int = 32
    batch_size: int = 512
    seed: int = 0


@torch.no_grad()
def own_preferences(
    model: Any,
    encoder: Encoder,
    images: ImageInputs,
    samples: Sequence[Sample],
    draws: AnswerDraws,
    progress: Progress | None = None,
) -> list[Sample]:
    """Has a model answer rows, and rejects the answers that `lockadapt eval` would score 0.

    Args:
        model: a Transformers model, possibly wrapped by PEFT.
        encoder: of the model's processor.
        images: give the rows' images.
        samples: rows whose last turns are answered.
        draws: how.
        progress: told (done, all).

    Returns:
        Samples with `rejected`; rows without a wrong answer are left out, and so are empty answers.

    Raises:
        AssemblyError: the LLM is an encoder-decoder.
    """
    if encoder.apart:
        raise AssemblyError("preferences of an encoder-decoder LLM are not learned", fix="use a decoder LLM")
    torch.manual_seed(draws.seed)
    rollout = Rollout(model, images, encoder.tokenizer)
    settings = _settings(model, encoder, draws)
    config = GenerationConfig(**settings, disable_compile=True)
    size, count = max(1, draws.batch_size // draws.answers), draws.answers
    preferences: list[Sample] = []
    with writing(model, settings):
        for start in range(0, len(samples), size):
            part = samples[start : start + size]
            ids = rollout([prompt_of(encoder, sample) for sample in part], count, config)
            texts = [*map(without_thought, encoder.tokenizer.batch_decode(ids, skip_special_tokens=True))]
            for number, sample in enumerate(part):
                wrong = _wrong(sample, texts[number * count : (number + 1) * count])
                preferences += [replace(sample, rejected=text) for text in wrong[: draws.pairs]]
            if progress:
                progress(start + len(part), len(samples))
    return preferences


def write_preferences(file: Path, preferences: Sequence[Sample]) -> None:
    """Writes preferences as JSON lines in TRL's format: `images`, `prompt`, `chosen` and `rejected`.

    Args:
        file: is replaced. Images are named relative to its folder, where a reader looks for them.
        preferences: samples with `rejected`.

    Raises:
        DataError: an image lies outside the file's folder, or is no file of its own.
        DiskError: the file cannot be written.
    """
    folder = file.absolute().parent.resolve()
    lines = [json.dumps(_row(sample, folder), ensure_ascii=False) + "\n" for sample in preferences]
    write_text(file, "".join(lines))


def _settings(model: Any, encoder: Encoder, draws: AnswerDraws) -> dict[str, Any]:
    """Fields of Transformers' `GenerationConfig`: all that a model's own could fill in."""
    ends = unwrap_model(model).generation_config.eos_token_id  # type: ignore[union-attr]
    sampling = {"temperature": draws.temperature, "top_p": 1.0, "top_k": 0} if draws.temperature else {}
    # The token of an image stands for none in an answer.
    suppressed = {"suppress_tokens": [encoder.image_token_id]} if encoder.image_token_id >= 0 else {}
    return {
        **{"max_new_tokens": draws.max_new_tokens, "do_sample": bool(sampling), **sampling, **suppressed},
        "eos_token_id": encoder.tokenizer.eos_token_id if ends is None else ends,
        "pad_token_id": encoder.tokenizer.pad_token_id,
    }


def _wrong(sample: Sample, answers: Sequence[str]) -> list[str]:
    """The distinct answers that are wrong, the most frequent first."""
    usable = [text for text in answers if text and IMAGE_MARK not in text]
    scores = VqaReward().score([sample] * len(usable), usable) if usable else []
    counted = Counter(text for text, score in zip(usable, scores, strict=True) if not score)
    return [text for text, _ in counted.most_common()]


def _row(sample: Sample, folder: Path) -> dict[str, Any]:
    return {
        "images": [_name(sample, number, folder) for number in range(len(sample.images))],
        "prompt": [message(turn) for turn in sample.turns[:-1]],
        "chosen": [{"role": "assistant", "content": sample.answer}],
        "rejected": [{"role": "assistant", "content": sample.rejected}],
    }


def _name(sample: Sample, number: int, folder: Path) -> str:
    image = sample.images[number]
    if image.path is None or image.mirrored or image.moment is not None:
        raise DataError(
            "an image of the row is no file of its own, so no other row can name it",
            where=sample.where,
            fix="write the images as files, and rows that name them",
        )
    if not image.path.is_relative_to(folder):
        raise DataError(
            f"{image.path} lies outside {folder}, where readers would look for it",
            where=sample.where,
            fix="write the preferences into a folder above the images",
        )
    return image.path.relative_to(folder).as_posix()
