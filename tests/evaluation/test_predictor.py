"""Questions from Python: files and pictures, one by one and in batches, answered as evaluation answers them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import lockadapt
from lockadapt.architectures.assemble import Assembled
from lockadapt.data.sample import Sample
from lockadapt.errors import DataError, RecipeError, SafetyError
from lockadapt.evaluation import predictor as module
from lockadapt.evaluation.chat import Chat
from tests.support.rows import pictures
from tests.support.runs import values

QUESTION = "what color is the shape?"
CHOICES = ["red", "green", "blue", "yellow"]


@pytest.fixture(scope="module", params=["clip-vision", "mobilenet-v2"])
def run(request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained until it tells colours apart."""
    folder = tmp_path_factory.mktemp("predictor")
    recipe = values(tiny, folder)
    recipe["model"]["tower"] = str(tiny / request.param)
    recipe["training"] |= {"steps": 200}
    return lockadapt.train(recipe, output=folder / "run", quiet=True).output


def test_answers_are_those_of_a_conversation(run: Path, tmp_path: Path) -> None:
    paths = list(pictures(tmp_path).values())
    asked = lockadapt.Predictor(str(run))
    talked = [Chat.open(run, [path], 5).ask(QUESTION) for path in paths]
    assert len(set(talked)) > 1
    assert [asked.answer(path, QUESTION, max_new_tokens=5) for path in paths] == talked
    assert asked.answers(paths, [QUESTION] * 4, max_new_tokens=5) == talked
    opened = [Image.open(path) for path in paths]
    assert asked.answers(opened, [QUESTION] * 4, max_new_tokens=5) == talked
    loaded = lockadapt.load_run(run)
    ready = lockadapt.Predictor.of_model(loaded.model, loaded.processor, batch_size=2)
    assert ready.answers([str(path) for path in paths], [QUESTION] * 4, max_new_tokens=5) == talked

    both = Chat.open(run, paths[:2], 5).ask(QUESTION)
    none = Chat.open(run, [], 5).ask(QUESTION)
    mixed = asked.answers([paths[:2], None, paths[0]], [QUESTION] * 3, max_new_tokens=5)
    assert mixed == [both, none, talked[0]]


def test_a_run_and_its_loaded_model_answer_the_same(run: Path, tmp_path: Path) -> None:
    paths = list(pictures(tmp_path).values())
    loaded = lockadapt.load_run(run)
    chosen = lockadapt.Predictor(run).answers(paths, [QUESTION] * 4, choices=CHOICES)
    assert chosen == lockadapt.Predictor(loaded).answers(paths, [QUESTION] * 4, choices=CHOICES)
    assert set(chosen) <= set(CHOICES)
    by_hand = lockadapt.Predictor.of_model(loaded.model, loaded.processor)
    assert [by_hand.answer(path, QUESTION, choices=CHOICES) for path in paths] == chosen


def test_pictures_are_shown_upright_and_left_as_they_were(
    assembled: Assembled, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = lockadapt.Predictor.of_model(assembled.model, assembled.processor)
    seen = []
    generate = type(asked._predictor).generate

    def watched(self: Any, samples: list[Sample], *arguments: Any) -> list[str]:
        seen.extend(self.images.picture(image) for sample in samples for image in sample.images)
        return generate(self, samples, *arguments)

    monkeypatch.setattr(type(asked._predictor), "generate", watched)
    upright = Image.linear_gradient("L").resize((40, 40)).convert("RGB")
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # to be turned by 270 degrees
    before = turned.tobytes()
    asked.answer(turned, QUESTION)
    assert seen[0].size == upright.size
    assert seen[0].tobytes() == upright.tobytes()
    assert turned.tobytes() == before
    assert turned.getexif()[0x0112] == 6


def test_what_cannot_be_asked(
    assembled: Assembled, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = lockadapt.Predictor.of_model(assembled.model, assembled.processor)
    red = pictures(tmp_path)["red"]
    with pytest.raises(DataError, match="does not exist"):
        asked.answer(tmp_path / "nowhere.png", QUESTION)
    with pytest.raises(DataError, match="question 1: the question holds the marker"):
        asked.answers([red, red], [QUESTION, f"{assembled.processor.image_token} what?"])
    with pytest.raises(DataError, match="1 images for 2 questions"):
        asked.answers([red], [QUESTION, QUESTION])
    with pytest.raises(DataError, match="choices is empty"):
        asked.answer(red, QUESTION, choices=[])
    half = tmp_path / "half.png"
    half.write_bytes(red.read_bytes()[:60])
    with pytest.raises(DataError, match="question 0: the picture is damaged or cut off"):
        asked.answer(Image.open(half), QUESTION)
    monkeypatch.setattr(module, "MAX_PIXELS", 100)
    small = lockadapt.Predictor.of_model(assembled.model, assembled.processor)
    with pytest.raises(SafetyError, match="480 pixels"):
        small.answer(red, QUESTION)


def test_a_dual_encoder_answers_nothing(tiny: Path, tmp_path: Path) -> None:
    recipe = values(tiny, tmp_path)
    rows = {**recipe["objectives"]["vqa"]["train"], "columns": {"caption": "answer"}}
    recipe["objectives"] = {"itc": {"train": rows, "mode": "dual", "dimension": 8}}
    recipe["training"] |= {"steps": 1}
    run = lockadapt.train(recipe, output=tmp_path / "run", quiet=True).output
    with pytest.raises(RecipeError, match="a dual encoder embeds and answers nothing"):
        lockadapt.Predictor(run)
