"""Each reward is the metric that it stands for, answer by answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from lockadapt.data.boxes import write_boxes
from lockadapt.data.sample import ImageRef, Sample, question_answer
from lockadapt.errors import DataError, RecipeError, SafetyError, SetupError
from lockadapt.metrics.boxes import score_boxes
from lockadapt.metrics.captions import score_captions
from lockadapt.metrics.retrieval import ranks
from lockadapt.metrics.vqa import score_answers
from lockadapt.rewards import REWARDS, Reward, RewardAccess, make_rewards
from tests.support.coco import load_coco


def row(number: int, answer: str = "red", **extra: Any) -> Sample:
    image = ImageRef(f"image-{number}", data=b"")
    return question_answer("what color?", answer, [image], f"rows:{number}", **extra)


def made(name: str, samples: Sequence[Sample], access: RewardAccess | None = None, **settings: Any) -> Reward:
    return make_rewards({name: settings}, samples, access or RewardAccess())[name]


def mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)


def test_vqa_is_the_accuracy_of_evaluation() -> None:
    people = [["red"] * 2 + ["Two."] * 8, ["a cat"] * 9 + ["dog"], ["yes"] * 10, ["blue", "navy"]]
    samples = [row(n, accepted[0], references=tuple(accepted)) for n, accepted in enumerate(people)]
    answers = ["red", "Cat", "Yes", " Navy."]
    scores = made("vqa", samples).score(samples, answers)
    assert mean(scores) == pytest.approx(score_answers(answers, people, [None] * 4)["accuracy"], abs=1e-12)
    assert scores == pytest.approx([0.6, 1.0, 0.0, 1.0])


def test_exact_is_exact_match_where_ten_people_answered_too() -> None:
    samples = [row(0, references=("red",) * 9 + ("Blue",)), row(1, "Red")]
    reward = made("exact", samples)
    assert reward.score(samples, ["blue.", "red"]) == [1.0, 1.0]
    assert reward.score(samples, ["navy", "redd"]) == [0.0, 0.0]
    assert made("vqa", samples).score(samples[:1], ["blue"]) != [1.0]


def test_iou_is_the_mean_iou_of_evaluation() -> None:
    first, other = (0.1, 0.1, 0.5, 0.5), (0.6, 0.6, 0.9, 0.9)
    samples = [row(0, boxes=(first,)), row(1, boxes=(first, other)), row(2, boxes=(other,))]
    predicted = [[(0.1, 0.1, 0.5, 0.3)], [other], []]
    answers = [write_boxes(boxes, "qwen") if boxes else "nowhere" for boxes in predicted]
    scores = made("iou", samples, box_format="qwen").score(samples, answers)
    assert scores == pytest.approx([0.5, 0.5, 0.0])
    truths = [sample.boxes for sample in samples]
    weighed = sum(score * len(boxes) for score, boxes in zip(scores, truths, strict=True))
    # The metric's mean is over boxes, the reward's over a row's.
    assert weighed / 4 == pytest.approx(score_boxes(predicted, truths)["mean_iou"])
    assert made("iou", samples, box_format="paligemma").score(samples, answers) == [0.0, 0.0, 0.0]
    with pytest.raises(DataError, match="boxes, which the row lacks"):
        made("iou", [*samples, row(3)])


def test_caption_is_cider_with_the_words_of_all_rows() -> None:
    people = [["a red dog runs", "one red dog"], ["a blue cat sits on a mat"], ["two green birds in a tree"]]
    samples = [row(n, accepted[0], references=tuple(accepted)) for n, accepted in enumerate(people)]
    answers = ["a red dog", "a cat on a mat", "birds"]
    reward = made("caption", [*samples, samples[0]])  # an image with several rows counts once
    scores = reward.score(samples, answers)
    assert mean(scores) == pytest.approx(score_captions(answers, people)["cider"], abs=1e-12)
    assert min(scores) > 0
    # Of a group about one image, whose words a batch of its own would all weigh 0.
    assert reward.score([samples[0]] * 2, [answers[0], "a cat"]) == [scores[0], pytest.approx(0, abs=0.1)]


@pytest.mark.real
def test_caption_is_pycocoevalcap(real: Path) -> None:
    coco = load_coco(real / "oracles/coco-captions")
    samples = [
        row(number, accepted[0], references=tuple(accepted))
        for number, accepted in enumerate(coco.reference_texts)
    ]
    scores = made("caption", samples).score(samples, coco.texts)
    assert mean(scores) == pytest.approx(coco.scores["CIDEr"], abs=1e-2)


class Fixed:
    """Embeds by tables."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.table = normalize(torch.randn(2, count, 8, generator=generator), dim=-1)

    def images(self, images: Sequence[ImageRef]) -> torch.Tensor:
        return self.table[0, [int(image.key.rpartition("-")[2]) for image in images]]

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        return self.table[1, [int(text) if text.isdigit() else 0 for text in texts]]


def test_retrieval_is_the_reciprocal_of_the_metrics_rank() -> None:
    fixed, count = Fixed(20), 12
    samples = [row(number) for number in range(count)]
    access = RewardAccess(embedder=lambda folder: {"runs/dual": fixed}[folder])
    answers = [str(number) for number in range(count)]
    scores = made("retrieval", samples, access, run="runs/dual").score(samples, answers)
    expected = ranks(fixed.table[1, :count], fixed.table[0, :count], torch.arange(count).repeat(2, 1).T)
    assert scores == pytest.approx((1 / expected.double()).tolist())
    assert len(set(scores)) > 3
    few = made("retrieval", samples, access, run="runs/dual", pool=3)
    assert few.score(samples[:1], [""]) == [0.0]
    assert few.score(samples[5:6], answers[5:6])[0] >= 1 / 4  # its own image and three others
    with pytest.raises(SetupError):
        made("retrieval", samples, run="runs/dual")
    with pytest.raises(DataError, match="single image"):
        made("retrieval", samples[:1], access, run="runs/dual")


def test_format_matches_whole_answers() -> None:
    samples = [row(0)] * 3
    reward = made("format", samples, pattern=r"<think>.+</think>\s*\w+")
    assert reward.score(
        samples, ["<think>a\nb</think> red\n", "<think></think> red", "x <think>a</think> b"]
    ) == [1, 0, 0]
    with pytest.raises(RecipeError, match="no regular expression"):
        made("format", samples, pattern="(")


def test_a_function_runs_only_where_code_is_allowed(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def score(answers, references, questions, **_):\n"
        "    assert questions[0] == 'what color?'\n"
        "    return [len(a) / len(r[0]) for a, r in zip(answers, references)]\n"
        "def short(answers, **_):\n"
        "    return [1.0]\n"
    )
    samples, allowed = [row(0), row(1, "blue")], RewardAccess(code=True)
    assert made("function", samples, allowed, function=f"{file}:score").score(samples, ["re", "bl"]) == [
        2 / 3,
        0.5,
    ]
    with pytest.raises(SafetyError, match="wants to run code"):
        made("function", samples, function=f"{file}:score")
    for name, message in (("none", "has no function"), ("no name", "names no function")):
        with pytest.raises(RecipeError, match=message):
            made("function", samples, allowed, function=f"{file}:{name}")
    with pytest.raises(DataError, match="1 numbers for 2 answers"):
        made("function", samples, allowed, function=f"{file}:short").score(samples, ["", ""])


def test_every_reward_has_its_name() -> None:
    assert {name: reward.name for name, reward in REWARDS.items()} == {name: name for name in REWARDS}
