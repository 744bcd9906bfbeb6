"""The encoder's quick way leads where the long way does, to the bit, for every shape of template and odd text."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from lockadapt.data.batch_tokenizer import BatchTokenizer
from lockadapt.data.encode import Encoder
from lockadapt.data.quick_encode import AUDITED, QuickText
from lockadapt.data.sample import ImageRef, Sample, Turn
from lockadapt.errors import DataError
from lockadapt.models.template_strings import template_strings
from tests.data.templates.corpus import CHATML, SHAPES, Shape
from tests.support.templates import processor_for

WORDS = [
    "red",
    "a square?",
    "is there",
    "yes",
    "</think>",
    "<think>",
    "user",
    "x\ny",
    "naïve 世界",
    "  two",
    "/think",
]


def talks(count: int, seed: int = 0) -> list[Sample]:
    """Conversations of one to three answers, with zero to two images, some with what templates look for."""
    draw = random.Random(seed)

    def text() -> str:
        chosen = draw.choices(WORDS, [9, 9, 9, 9, 1, 1, 1, 1, 1, 1, 1], k=draw.randint(1, 3))
        return (" ".join(chosen) + draw.choice([""] * 12 + [" ", "\n"])) or "no"

    samples = []
    for number in range(count):
        images = tuple(ImageRef(f"{image}.png") for image in range(number % 3))
        turns = [Turn("user", text(), len(images)), Turn("assistant", text())]
        for _ in range(draw.randint(0, 2)):
            turns += [Turn("user", text()), Turn("assistant", text())]
        samples.append(Sample(images, tuple(turns), f"rows:{number}"))
    return samples


def encoded(encoder: Encoder, samples: list[Sample]) -> list[Any]:
    """What becomes of each sample by itself: arrays, or what it is refused with."""
    made: list[Any] = []
    for sample in samples:
        try:
            report = encoder.encode([sample])
        except DataError as error:
            made.append(error.message)
            continue
        rows = [
            (item.input_ids.tolist(), item.labels.tolist(), item.image_end, item.input_ids.dtype.name)
            for item in report.encoded
        ]
        made.append((rows, report.cut, report.dropped, report.merged_boundaries))
    return made


def long_way(encoder: Encoder) -> Encoder:
    encoder.quick.write = lambda sample: None  # type: ignore[method-assign]
    return encoder


@pytest.mark.parametrize("name", SHAPES)
def test_both_ways_are_equal_to_the_bit(name: str) -> None:
    samples, processor = talks(40), processor_for(SHAPES[name])
    quick, slow = Encoder(processor, 90), long_way(Encoder(processor, 90))
    assert encoded(quick, samples) == encoded(slow, samples)


def test_many_rows_at_once_are_equal_to_the_bit() -> None:
    processor = processor_for(Shape(CHATML, special=("<|im_start|>", "<|im_end|>"), eos="<|im_end|>"))
    samples = talks(700, 1)
    quick, slow = Encoder(processor, 24).encode(samples), long_way(Encoder(processor, 24)).encode(samples)
    assert [item.sample.where for item in quick.encoded] == [item.sample.where for item in slow.encoded]
    for mine, theirs in zip(quick.encoded, slow.encoded, strict=True):
        assert np.array_equal(mine.input_ids, theirs.input_ids)
        assert np.array_equal(mine.labels, theirs.labels)
        assert mine.image_end == theirs.image_end
        assert mine.labels.dtype == theirs.labels.dtype
    assert (quick.cut, quick.dropped) == (slow.cut, slow.dropped)
    assert quick.dropped
    assert quick.cut


@pytest.mark.parametrize("name", SHAPES)
def test_rows_of_every_template_at_once_are_equal_to_the_bit(name: str) -> None:
    samples, processor = talks(60, 2), processor_for(SHAPES[name])
    slow = long_way(Encoder(processor, 900))
    expected = [sample for sample in samples if isinstance(encoded(slow, [sample])[0], tuple)]
    quick = Encoder(processor, 900).encode(expected)
    report = slow.encode(expected)
    assert len(quick.encoded) == len(report.encoded) > 0
    for mine, theirs in zip(quick.encoded, report.encoded, strict=True):
        assert (mine.input_ids.tolist(), mine.labels.tolist()) == (
            theirs.input_ids.tolist(),
            theirs.labels.tolist(),
        )
        assert mine.image_end == theirs.image_end
    assert quick.merged_boundaries == report.merged_boundaries


def quick_of(count: int) -> tuple[Encoder, list[Sample]]:
    """An encoder for which rows of a shape are known, and rows with few texts."""
    encoder = Encoder(processor_for(SHAPES["chatml"]), 500)
    turns = [(Turn("user", f"is it {n % 5}?", 1), Turn("assistant", "yes")) for n in range(count)]
    samples = [Sample((ImageRef("a.png"),), pair, f"rows:{number}") for number, pair in enumerate(turns)]
    encoder.encode(samples[: AUDITED + 1])
    return encoder, samples


def test_what_is_said_again_is_tokenised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, samples = quick_of(100)
    seen: list[str] = []
    encode = BatchTokenizer._encode
    monkeypatch.setattr(
        BatchTokenizer, "_encode", lambda self, texts, at: seen.extend(texts) or encode(self, texts, at)
    )
    encoder.encode(samples)
    assert not seen
    monkeypatch.setattr("lockadapt.data.segments.KEPT_TOKENS", 20)
    encoder.encode(samples)
    assert len(seen) == 6  # five questions and an answer


def test_rows_are_rendered_for_the_first_of_a_shape_only(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(processor_for(SHAPES["chatml"]), 500)
    turns = (Turn("user", "is it red?", 1), Turn("assistant", "yes"))
    samples = [Sample((ImageRef("a.png"),), turns, f"rows:{number}") for number in range(150)]
    encoder.encode(samples[: AUDITED + 1])
    rendered: list[Any] = []
    render = encoder.dialogue.render
    monkeypatch.setattr(
        encoder.dialogue, "render", lambda *given, **named: rendered.append(given) or render(*given, **named)
    )
    encoder.encode(samples[AUDITED + 1 :])
    assert not rendered


def test_a_template_that_surprises_is_rendered_for_every_row() -> None:
    # The number of characters is nothing that a text can be searched for.
    odd = CHATML.replace(
        "message['content'] + '<|im_end|>'",
        "message['content'] + '!' * (message['content']|length // 31) + '<|im_end|>'",
    )
    assert template_strings(odd) is not None
    processor = processor_for(Shape(odd, special=("<|im_start|>", "<|im_end|>"), eos="<|im_end|>"))

    def question(text: str, number: int) -> Sample:
        return Sample((), (Turn("user", text), Turn("assistant", "yes")), f"rows:{number}")

    samples = [question("is it red?" if n < 250 else "is it red? " * 4 + "no", n) for n in range(600)]
    quick, slow = Encoder(processor, 500).encode(samples), long_way(Encoder(processor, 500)).encode(samples)
    for mine, theirs in zip(quick.encoded, slow.encoded, strict=True):
        assert np.array_equal(mine.input_ids, theirs.input_ids)


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("{{ message['content'] }}", True),
        ("{% if '<think>' in message.content %}x{% endif %}", True),
        ("{{ message.content.split() }}", False),
        ("{{ message.content | wordcount }}", False),
        ("{% if message.content < 'b' %}x{% endif %}", False),
        ("{% if %}", False),
    ],
)
def test_what_is_not_known_takes_the_long_way(text: str, known: bool) -> None:
    strings = template_strings(text)
    assert (strings is not None) == known
    if "think" in text:
        assert strings is not None
        assert strings.within == {"<think>"}


def test_texts_that_a_template_may_change_take_the_long_way() -> None:
    encoder = Encoder(processor_for(SHAPES["qwen-3"]), 500)

    def written(text: str) -> QuickText | None:
        return encoder.quick.write(Sample((), (Turn("user", text), Turn("assistant", "yes")), "rows:1"))

    encoder.encode([Sample((), (Turn("user", "red"), Turn("assistant", "yes")), "rows:0")])
    assert written("is it red?") is not None
    for text in ("a </think> b", " red", "red\n", "user", "<|im_end|>", "<image>", "a\nb"):
        assert written(text) is None, text
