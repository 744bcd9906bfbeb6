"""Conversations about several pictures: every turn sees all before it, exactly as the stock processor writes them."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lockadapt.architectures.assemble import Assembled
from lockadapt.architectures.load import load_model
from lockadapt.cli.chat import chat as chat_verb
from lockadapt.data.sample import Sample
from lockadapt.errors import DataError, RecipeError
from lockadapt.evaluation.chat import BOX_COLOUR, Chat
from tests.support.rows import pictures

TOKENS = 4


def stock_answer(model: Any, processor: Any, messages: list[dict[str, Any]], shown: list[Path]) -> str:
    """What plain Transformers says to a conversation."""
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    images = [Image.open(path).convert("RGB") for path in shown]
    inputs = processor(text=[prompt], images=images or None, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        made = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    return processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def user(text: str, images: int = 0) -> dict[str, Any]:
    return {"role": "user", "content": [*[{"type": "image"}] * images, {"type": "text", "text": text}]}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}] if text else []}


def test_every_turn_sees_all_pictures_and_turns(
    assembled: Assembled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = pictures(tmp_path)
    talk = Chat.open(assembled.folder, [paths["red"], paths["blue"]], TOKENS)
    asked: list[Sample] = []
    generate = type(talk.predictor).generate

    def watched(self: Any, samples: list[Sample], *arguments: Any) -> list[str]:
        asked.extend(samples)
        return generate(self, samples, *arguments)

    monkeypatch.setattr(type(talk.predictor), "generate", watched)
    answers = [talk.ask("which is red?")]
    talk.show(paths["yellow"])
    answers += [talk.ask("and this?"), talk.ask("is there a circle?")]
    model, processor = load_model(assembled.folder, torch.float32)
    messages, shown = [user("which is red?", 2)], [paths["red"], paths["blue"]]
    for number, (question, more) in enumerate(
        [("", []), ("and this?", [paths["yellow"]]), ("is there a circle?", [])]
    ):
        if number:
            messages += [assistant(answers[number - 1]), user(question, len(more))]
            shown = shown + more
        assert [image.path for image in asked[number].images] == shown
        prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = processor(text=[prompt], images=[Image.open(path) for path in shown], add_special_tokens=False)
        assert talk.predictor.encoder.prompt_ids(asked[number]) == ids["input_ids"][0]
        assert answers[number] == stock_answer(model, processor, messages, shown)


def test_talk_without_pictures(assembled: Assembled) -> None:
    talk = Chat.open(assembled.folder, [], TOKENS)
    model, processor = load_model(assembled.folder, torch.float32)
    assert talk.ask("once upon a time") == stock_answer(model, processor, [user("once upon a time")], [])


def test_run_and_merged_folder_say_the_same(
    embedding_run: Path, embedding_merged: Path, tmp_path: Path
) -> None:
    dialogues = []
    for target in (embedding_run, embedding_merged):
        talk = Chat.open(target, list(pictures(tmp_path).values())[:2], TOKENS)
        dialogues.append([talk.ask("what color is it?"), talk.ask("is there a circle?")])
    assert dialogues[0] == dialogues[1]
    assert dialogues[0][0]


def test_what_fails_leaves_the_conversation_as_it_was(assembled: Assembled, tmp_path: Path) -> None:
    paths = pictures(tmp_path)
    talk = Chat.open(assembled.folder, [paths["red"]], TOKENS)
    talk.ask("what?")
    images, turns = list(talk.images), list(talk.turns)
    (tmp_path / "broken.png").write_text("no picture")
    for name in ("broken.png", "gone.png"):
        with pytest.raises(DataError, match=name):
            talk.show(tmp_path / name)
    talk.show(paths["blue"])
    with pytest.raises(DataError, match="the limit is"):
        talk.ask("red " * 300)
    with pytest.raises(DataError, match="marker"):
        talk.ask("an <image>")
    assert (talk.images, talk.turns, talk.waiting) == (images, turns, 0)
    talk.ask("and?")
    with pytest.raises(DataError, match="no such image"):
        Chat.open(tmp_path / "no model", [tmp_path / "gone.png"], TOKENS)


def test_boxes_of_an_answer_are_drawn(
    assembled: Assembled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (100, 50), "white").save(tmp_path / "0.png")
    answers = iter(["it is at [100, 200, 500, 800]", "nowhere"])
    monkeypatch.setattr(Chat, "ask", lambda self, text: next(answers))
    file = tmp_path / "drawn.png"
    chat_verb(assembled.folder, [tmp_path / "0.png"], ["where?"], TOKENS, file)
    picture = Image.open(file)
    assert picture.size == (100, 50)
    assert all(picture.getpixel(corner) == BOX_COLOUR for corner in ((10, 10), (49, 10), (10, 39), (49, 39)))
    assert picture.getpixel((30, 25)) == picture.getpixel((55, 10)) == (255, 255, 255)
    assert "1 boxes" in capsys.readouterr().err
    file.unlink()
    chat_verb(assembled.folder, [tmp_path / "0.png"], ["and?"], TOKENS, file)
    assert not file.exists()
    assert "no box" in capsys.readouterr().err


def test_boxes_need_an_image_and_a_format(assembled: Assembled, tmp_path: Path) -> None:
    talk = Chat.open(assembled.folder, [], TOKENS)
    with pytest.raises(DataError, match="no image was shown"):
        talk.draw_boxes("[1, 2, 3, 4]", tmp_path / "a.png")
    with pytest.raises(RecipeError, match="no image is written"):
        chat_verb(tmp_path / "no model", [], ["?"], TOKENS, tmp_path / "a.exe")


class Terminal(io.StringIO):
    """Lines as somebody types them."""

    def isatty(self) -> bool:
        return True


def test_pictures_are_added_by_a_line(
    embedding_merged: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = pictures(tmp_path)
    lines = f"/image {paths['red']}\nwhat color is it?\n\n/image {tmp_path}/gone.png\n/image {paths['blue']}\nand?\n"
    monkeypatch.setattr(sys, "stdin", Terminal(lines))
    chat_verb(embedding_merged, [], [], TOKENS)
    typed = capsys.readouterr()
    assert "no such image" in typed.err
    talk = Chat.open(embedding_merged, [paths["red"]], TOKENS)
    answers = [talk.ask("what color is it?")]
    talk.show(paths["blue"])
    assert typed.out == "".join(f"{answer}\n" for answer in [*answers, talk.ask("and?")])
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    with pytest.raises(DataError, match="no such image"):
        chat_verb(embedding_merged, [], [], TOKENS)


def test_talk_with_a_model_that_draws(drawing: Assembled, tmp_path: Path) -> None:
    """Janus frames an image's tokens; its answers are those of the stock class."""
    paths = pictures(tmp_path)
    talk = Chat.open(drawing.folder, [paths["red"], paths["blue"]], TOKENS)
    answer = talk.ask("which is red?")
    talk.show(paths["green"])
    after = talk.ask("and this?")
    model, processor = load_model(drawing.folder, torch.float32)
    messages, shown = [user("which is red?", 2)], [paths["red"], paths["blue"]]
    assert answer == stock_answer(model, processor, messages, shown)
    messages += [assistant(answer), user("and this?", 1)]
    shown.append(paths["green"])
    assert after == stock_answer(model, processor, messages, shown)
    sample = Sample(tuple(talk.images), tuple(talk.turns), "chat")
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    pictured = [Image.open(path) for path in shown]
    ids = processor(text=[prompt], images=pictured, add_special_tokens=False)["input_ids"][0]
    assert talk.predictor.encoder.prompt_ids(sample) == list(ids)
