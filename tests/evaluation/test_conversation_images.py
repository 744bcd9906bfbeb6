"""Questions about an image that was shown before do not run the tower again, and get the same answers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import nn

from lockadapt.architectures import tower_of
from lockadapt.data.encode import Encoder
from lockadapt.data.pixels import pixel_inputs
from lockadapt.evaluation.chat import Chat
from lockadapt.evaluation.conversation_images import ConversationImages, file_key
from lockadapt.evaluation.predictor import Predictor
from tests.support.existing_vlm import written
from tests.support.zoo import entry_of


class Runs:
    """Counts the forwards of a tower's first block."""

    def __init__(self, tower: nn.Module) -> None:
        self.count = 0
        blocks = next(module for module in tower.modules() if isinstance(module, nn.ModuleList))
        blocks[0].register_forward_hook(self.add)

    def add(self, *_: Any) -> None:
        self.count += 1


@pytest.mark.parametrize("name", ["idefics3", "gemma3", "llava_next", "qwen2_5_vl"])
def test_a_picture_is_read_once_in_a_conversation(name: str, tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), (200, 20, 20)).save(tmp_path / "a.png")
    notes: list[str] = []
    talk = Chat.open(written(name, tmp_path / "vlm"), [tmp_path / "a.png"], 4, notes.append)
    plain = dataclasses.replace(talk, kept=_nothing(talk), images=[*talk.images], turns=[])
    first = [talk.ask("What?"), talk.ask("Which?")]
    runs = Runs(tower_of(talk.predictor.model))
    second = talk.ask("And what else?")
    assert runs.count == 0
    assert not notes
    assert [*first, second] == [plain.ask("What?"), plain.ask("Which?"), plain.ask("And what else?")]
    assert runs.count > 0, "without what is kept, pictures are read for every question"


def test_what_cannot_be_kept_is_told_once(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), (200, 20, 20)).save(tmp_path / "a.png")
    notes: list[str] = []
    talk = Chat.open(written("mllama", tmp_path / "vlm"), [tmp_path / "a.png"], 2, notes.append)
    talk.ask("What?")
    talk.ask("And?")
    (note,) = notes
    assert "images are read anew for every question" in note


def test_a_predictor_keeps_pictures_until_their_file_changes(tmp_path: Path) -> None:
    model, processor = entry_of("idefics3").build()
    file = tmp_path / "a.png"
    Image.new("RGB", (64, 48), (200, 20, 20)).save(file)
    predictor = Predictor.of_model(model, processor)
    answer = predictor.answer(file, "What?", max_new_tokens=4)
    assert predictor.answer(file, "What?", max_new_tokens=4) == answer
    runs, key = Runs(tower_of(model)), file_key(file)
    assert predictor.answer(file, "What?", max_new_tokens=4) == answer
    assert runs.count == 0
    Image.new("RGB", (96, 48), (20, 20, 200)).save(file)
    assert file_key(file) != key
    predictor.answer(file, "What?", max_new_tokens=4)
    assert runs.count > 0


def _nothing(talk: Chat) -> ConversationImages:
    encoder: Encoder = talk.predictor.encoder
    kept = ConversationImages(talk.predictor.model, encoder, pixel_inputs(encoder.processor, 10**6))
    return dataclasses.replace(kept, _tried=True, _problem="asked for")


def test_pictures_that_are_asked_about_once_are_not_tried() -> None:
    model, processor = entry_of("idefics3").build()
    predictor = Predictor.of_model(model, processor)
    predictor.answer(None, "What?", max_new_tokens=2)
    predictor.answer(Image.new("RGB", (64, 48)), "What?", max_new_tokens=2)
    assert not predictor._images._tried
