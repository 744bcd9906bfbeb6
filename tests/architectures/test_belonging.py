"""Folders of existing models whose files do not belong together are refused before anything is computed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lockadapt.architectures.assemble import assemble
from lockadapt.architectures.load import load_model
from lockadapt.errors import AssemblyError
from lockadapt.evaluation.chat import Chat

Change = Callable[[dict[str, Any]], None]


def _vocabulary(tokenizer: dict[str, Any]) -> None:
    words = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {word: 10**6 + number for number, word in enumerate(words)}


def _std(processor: dict[str, Any]) -> None:
    processor["image_processor"]["image_std"] = [0.0, 0.0, 0.0]


def _rescale(processor: dict[str, Any]) -> None:
    processor["image_processor"]["rescale_factor"] = "y"


def _size(processor: dict[str, Any]) -> None:
    processor["image_processor"]["size"] = "large"


DAMAGE: list[tuple[str, Change, str]] = [
    ("tokenizer.json", _vocabulary, "the LLM's table has"),
    ("config.json", lambda config: config.update(image_token_id=3, image_token_index=3), "image token"),
    ("processor_config.json", _std, "not finite"),
    ("processor_config.json", _rescale, "fails on a plain picture"),
    ("processor_config.json", _size, "size"),
    ("generation_config.json", lambda settings: settings.update(eos_token_id="boo"), "eos_token_id"),
    ("generation_config.json", lambda settings: settings.update(eos_token_id=[2, 1.5]), "eos_token_id"),
]


@pytest.fixture(scope="module")
def stock(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA."""
    folder = tmp_path_factory.mktemp("stock") / "model"
    assemble(tiny / "llama-tied", tiny / "clip-vision", folder, dtype="float32", prove=False)
    return folder


@pytest.mark.parametrize(("name", "change", "words"), DAMAGE)
def test_files_that_do_not_belong_together_are_refused(
    name: str, change: Change, words: str, stock: Path, tmp_path: Path
) -> None:
    _damaged(stock, tmp_path / "vlm", name, change)
    with pytest.raises(Exception, match=words) as error:
        load_model(tmp_path / "vlm")
    assert type(error.value).__module__ == "lockadapt.errors"
    assert str(tmp_path / "vlm") in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": "x"},
        {"num_beams": 8, "num_return_sequences": 4},
        {"penalty_alpha": 0.6, "top_k": 4},
    ],
)
def test_settings_that_generation_does_not_take_are_named(
    settings: dict[str, Any], stock: Path, tmp_path: Path
) -> None:
    _damaged(stock, tmp_path / "vlm", "generation_config.json", lambda given: given.update(settings))
    Image.new("RGB", (24, 20), "red").save(tmp_path / "red.png")
    chat = Chat.open(tmp_path / "vlm", [tmp_path / "red.png"], 2)
    with pytest.raises(AssemblyError, match=next(iter(settings))):
        chat.ask("what?")


def _damaged(source: Path, folder: Path, name: str, change: Change) -> None:
    shutil.copytree(source, folder)
    values = json.loads((folder / name).read_text())
    change(values)
    (folder / name).write_text(json.dumps(values))
