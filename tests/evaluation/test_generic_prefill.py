"""Stock classes of any kind answer from one reading of an image as they answer each prompt alone, or say why not."""

from __future__ import annotations

import dataclasses

import pytest

from lockadapt.data.encode import Encoder
from lockadapt.data.pixels import pixel_inputs
from lockadapt.evaluation import predict
from lockadapt.evaluation.predict import SamplePredictor
from tests.support.rows import picture_questions
from tests.support.zoo import entry_of

SHARED = ("gemma3", "llava_next", "idefics2", "qwen2_5_vl", "qwen3_vl", "glm4v", "internvl", "mistral3")
ALONE = {
    "gemma3_short_window": "looks back 8 tokens",
    "ovis2": "logits of an answer's token 1 differ",
    "qwen3_5": "linear_attention layers",
}


def answers(name: str) -> tuple[list[str], list[str], list[str]]:
    """Answers to questions about two pictures of as many tokens in other shapes, shared and alone; and notes."""
    entry = entry_of(name)
    if missing := entry.missing():
        pytest.skip(f"its processor needs {' and '.join(missing)}")
    model, processor = entry.build()
    samples = picture_questions(
        ("What?", "x"), ("How many things?", "x"), ("Which?", "x"), pictures={"a": (96, 32)}
    )
    samples += picture_questions(("What?", "x"), ("Is it?", "x"), pictures={"b": (48, 64)})
    notes: list[str] = []
    images = pixel_inputs(processor, 10**6)
    own = SamplePredictor(model, Encoder(processor, 4096), images, batch_size=8, note=notes.append)
    alone = dataclasses.replace(own, max_row_tokens=None, note=None)
    return own.generate(samples, 6), [alone.generate([sample], 6)[0] for sample in samples], notes


@pytest.mark.parametrize("name", SHARED)
def test_answers_from_one_reading_are_those_of_each_prompt(name: str) -> None:
    shared, alone, notes = answers(name)
    assert shared == alone
    assert not notes


@pytest.mark.parametrize("name", ALONE)
def test_what_cannot_be_shared_is_told_and_answered_alone(name: str) -> None:
    shared, alone, notes = answers(name)
    assert shared == alone
    assert ALONE[name] in notes[0]


def test_positions_that_are_not_chosen_by_owner_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen-VL keeps them beside the cache, one a row."""
    real = predict.prefill_problem
    seen: list[str | None] = []

    def broken(model, *arguments):
        name = "rope_deltas"
        holder = next(module for module in model.modules() if hasattr(module, name))
        handle = model.register_forward_hook(
            lambda *_: setattr(holder, name, None if holder.rope_deltas is None else holder.rope_deltas + 7)
        )
        seen.append(real(model, *arguments))
        handle.remove()
        return seen[-1]

    monkeypatch.setattr(predict, "prefill_problem", broken)
    shared, alone, notes = answers("qwen2_5_vl")
    assert shared == alone
    assert "differ by" in notes[0]
