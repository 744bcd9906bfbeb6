"""What is asked of the trained model, and what its answers allow another folder: every limit from both sides."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from lockadapt.architectures.assemble import Assembled
from lockadapt.data.sample import ImageRef, Sample, Turn, question_answer
from lockadapt.errors import DataError
from lockadapt.exports.proofs.merged_folder import KL, compare_logits, differences, kl_limit, looks
from lockadapt.exports.proofs.reference import (
    NEW_TOKENS,
    POSITIONS,
    Answer,
    Reference,
    reference_answers,
    without_images,
)
from lockadapt.exports.proofs.rounding import Rounding
from tests.support.rows import dialogue_sample, vqa_samples

LOGITS = torch.linspace(-10, 10, 60).view(1, 3, 20)
ANSWER = Answer(
    (5, 6), (7, 8, 1), None, torch.tensor([[7, 9], [8, 3], [1, 4]]), torch.tensor([[3.0, 2.5]] * 3)
)
RIGHT: dict[str, Any] = {
    "max_abs_logit_diff": 0.0,
    "kl": 0.0,
    "top1_agreement": 1.0,
    "decided_agreement": 1.0,
    "prompts_equal": True,
    "pixels_equal": True,
    "answers": 2,
    "answers_equal": 2,
    "answer_gap": 0.0,
    "image_effect": 1.0,
}


def reference(**changes: Any) -> Reference:
    logits = {"sample0": LOGITS, "swapped0": LOGITS + 1.0, "text0": LOGITS}
    made = Reference({}, logits, (), (ANSWER,), torch.float32, image_effect=1.0, adapter_kl=0.01)
    return dataclasses.replace(made, **changes)


def test_as_many_texts_as_samples_and_every_image_swapped(assembled: Assembled, tmp_path: Path) -> None:
    samples = [*vqa_samples(tmp_path)[::2], dialogue_sample(tmp_path)]
    reference = reference_answers(assembled.model, assembled.processor, samples)
    names = [f"{kind}{n}" for n in range(5) for kind in ("sample", "swapped", "text")]
    assert sorted(reference.logits) == sorted(names)
    assert [bool(sample.images) for sample in reference.samples] == [True] * 5 + [False] * 5
    image = assembled.processor.tokenizer.convert_tokens_to_ids(assembled.processor.image_token)
    for n in range(5):
        shown, other = (reference.tensors[f"{kind}{n}.pixel_values"] for kind in ("sample", "swapped"))
        assert not torch.equal(shown, other)
        assert torch.equal(*(reference.tensors[f"{kind}{n}.input_ids"] for kind in ("sample", "swapped")))
        text = reference.tensors[f"text{n}.input_ids"]
        assert image not in text
        assert f"text{n}.pixel_values" not in reference.tensors
        kept = reference.tensors[f"sample{n}.logits_to_keep"]
        ids = reference.tensors[f"sample{n}.input_ids"]
        assert image not in ids[0, kept]
        assert (
            len(kept) == reference.logits[f"sample{n}"].shape[1] == min(POSITIONS, int((ids != image).sum()))
        )
        with torch.no_grad():
            whole = assembled.model(input_ids=ids, pixel_values=shown).logits[:, kept]
        torch.testing.assert_close(reference.logits[f"sample{n}"], whole)
    assert reference.image_effect is not None
    assert reference.image_effect > 0
    assert reference.adapter_kl is None
    for answer in reference.answers:
        assert 0 < len(answer.tokens) <= NEW_TOKENS
        assert answer.likeliest[:, 0].tolist() == list(answer.tokens)


def test_one_picture_is_swapped_for_its_negative(assembled: Assembled, tmp_path: Path) -> None:
    reference = reference_answers(assembled.model, assembled.processor, vqa_samples(tmp_path)[:2])
    assert not torch.equal(
        reference.tensors["sample0.pixel_values"], reference.tensors["swapped0.pixel_values"]
    )


def test_samples_without_images_are_texts_only(assembled: Assembled) -> None:
    reference = reference_answers(
        assembled.model, assembled.processor, [question_answer("q?", "a", [], "r:1")]
    )
    assert list(reference.logits) == ["text0"]
    assert reference.image_effect is None
    assert looks(reference, torch.float32) is None
    assert len(reference.answers) == 1


def test_a_model_that_does_not_look_is_not_asked_to(assembled: Assembled, tmp_path: Path) -> None:
    model = copy.deepcopy(assembled.model)
    for parameter in model.model.multi_modal_projector.parameters():
        torch.nn.init.zeros_(parameter)
    reference = reference_answers(model, assembled.processor, vqa_samples(tmp_path)[:4])
    assert reference.image_effect == 0.0
    assert looks(reference, torch.float32) is False
    assert differences({**RIGHT, "image_effect": 0.0}, reference, torch.float32) == []


def test_nothing_that_fits_is_nothing_proved(assembled: Assembled) -> None:
    long = question_answer("word " * 400, "a", [], "r:1")
    with pytest.raises(DataError, match="no probe sample"):
        reference_answers(assembled.model, assembled.processor, [long])


def test_a_conversation_without_its_images() -> None:
    image = ImageRef("k")
    sample = Sample((image,), (Turn("user", "what?", images=1), Turn("assistant", "red")), "r:1")
    alone = without_images(sample)
    assert alone.images == ()
    assert [turn.images for turn in alone.turns] == [0, 0]
    assert alone.answer == "red"


@pytest.mark.parametrize(
    ("other", "gap"),
    [
        ((7, 8, 1), 0.0),
        ((9, 8, 1), 0.5),  # the second likeliest
        ((7, 8, 30), 0.5),  # none of those that are kept: at least as far as the last of them
        ((7, 8), float("inf")),
        ((7, 8, 1, 1), float("inf")),
    ],
)
def test_how_near_a_tie_another_answer_is(other: tuple[int, ...], gap: float) -> None:
    assert ANSWER.gap(other) == gap


def test_limits_from_both_sides() -> None:
    """fp32: 1e-4 of the largest logit, 10, so 1e-3 for a logit, and 2e-3 for the order of two."""
    expected = reference()
    assert differences(RIGHT, expected, torch.float32) == []
    inside = {**RIGHT, "max_abs_logit_diff": 0.00109, "kl": 9e-5, "answer_gap": 0.0019, "image_effect": 0.6}
    assert differences(inside, expected, torch.float32) == []
    for key, value, message in (
        ("max_abs_logit_diff", 0.0012, "logits differ by 0.0012 (allowed 0.0011)"),
        ("kl", 1.1e-4, "KL divergence is 0.00011 nats (allowed 0.0001)"),
        ("kl", float("nan"), "KL divergence is nan"),
        ("decided_agreement", 0.99, "only 0.9900 of the most likely"),
        ("prompts_equal", False, "other prompts"),
        ("pixels_equal", False, "other pixels"),
        ("answer_gap", 0.0025, "greedy answers differ"),
        ("image_effect", 0.4, "swapping images changes logits by 0.4, in the trained model by 1"),
    ):
        (problem,) = differences({**RIGHT, key: value}, expected, torch.float32)
        assert message in problem
    (problem,) = differences({"shapes": {"text0": ([1, 3, 20], [1, 3, 21])}}, expected, torch.float32)
    assert problem == "logits of text0 have the shape [1, 3, 21], not [1, 3, 20]"


def test_a_near_tie_is_no_disagreement() -> None:
    """4 roundings of 8 are 0.25 in bfloat16: a lead of 0.2 may be lost, one of 0.3 may not."""
    first = {"a": torch.tensor([[[8.0, 7.8, 0.0], [8.0, 7.7, 0.0], [8.0, 0.0, 0.0]]])}
    for lost, decided in ((0, 1.0), (1, 0.5)):
        second = {"a": first["a"].clone()}
        second["a"][0, lost, :2] = second["a"][0, lost, :2].flip(0)
        agreement = compare_logits(first, second, torch.bfloat16)
        assert (agreement["top1_agreement"], agreement["decided_agreement"]) == (
            pytest.approx(2 / 3),
            decided,
        )
    assert compare_logits(first, {"a": first["a"].flip(-1)})["decided_agreement"] == 0.0


def test_the_coarser_dtype_sets_the_limits() -> None:
    assert reference().allowed(torch.bfloat16) == pytest.approx(0.33)
    assert reference(dtype=torch.bfloat16).allowed(torch.float32) == pytest.approx(0.33)
    assert reference(dtype=torch.float16).allowed(torch.float32) == pytest.approx(0.33)
    assert reference().allowed(torch.float32) == pytest.approx(0.0011)


def test_what_a_model_rounds_by_itself_is_allowed() -> None:
    rounds = reference(rounding=Rounding(logit=3.0, kl=0.004), dtype=torch.bfloat16)
    assert rounds.allowed(torch.bfloat16) == 6.0
    assert kl_limit(rounds, torch.bfloat16) == pytest.approx(0.012)
    assert kl_limit(dataclasses.replace(rounds, rounding=Rounding(3.0, 0.02)), torch.bfloat16) == 0.06
    steady = dataclasses.replace(rounds, rounding=Rounding(logit=0.01, kl=1e-6))
    assert steady.allowed(torch.bfloat16) == pytest.approx(0.33)
    assert kl_limit(steady, torch.bfloat16) == pytest.approx(5e-3)


def test_rounding_is_measured_where_a_model_rounds(assembled: Assembled, tmp_path: Path) -> None:
    model, samples = copy.deepcopy(assembled.model), vqa_samples(tmp_path)[:2]
    assert reference_answers(model, assembled.processor, samples).rounding is None
    first = reference_answers(model.to(torch.bfloat16), assembled.processor, samples)
    again = reference_answers(model, assembled.processor, samples)
    assert first.rounding == again.rounding
    assert first.rounding is not None
    assert first.rounding.kl > 0.0
    assert first.rounding.logit > 0.0
    assert torch.equal(first.logits["text0"], again.logits["text0"])  # nothing of it stays


def test_a_folder_must_be_nearer_than_the_adapter_is_far() -> None:
    """Else it could as well be the untrained one; what rounding does is always allowed, and never more than the cap."""
    noise, most = KL[torch.bfloat16]
    for adapter, limit in ((0.0, noise), (1e-3, noise), (0.04, 0.01), (3.0, most), (None, most)):
        assert kl_limit(reference(adapter_kl=adapter), torch.bfloat16) == pytest.approx(limit)


def test_numbers_that_are_none_are_infinitely_far() -> None:
    broken = LOGITS.clone()
    broken[0, 0, 0] = float("nan")
    assert compare_logits({"a": LOGITS}, {"a": broken})["max_abs_logit_diff"] == float("inf")
    broken[0, 0, 0] = float("inf")
    assert compare_logits({"a": LOGITS}, {"a": broken})["max_abs_logit_diff"] == float("inf")
