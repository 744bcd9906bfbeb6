"""Folders say what was trained: where generation stops, and prompts without thinking."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor, AutoTokenizer, GenerationConfig

from lockadapt.architectures.assemble import assemble
from lockadapt.architectures.load import load_model
from lockadapt.data.encode import Encoder
from lockadapt.exports.stock_folder import copy_configs
from lockadapt.models.chat_template import add_end_tokens
from lockadapt.models.settled_folder import settle_folder, unsettled
from lockadapt.planning.check import describe_dialogue, dialogue_text
from tests.data.templates.corpus import CHATML, LLAVA15, QWEN3
from tests.support.templates import one_question, stock_prompt
from tests.support.tiny import tiny_llm


def built(template: str, tiny: Path, folder: Path, special: tuple[str, ...] = ()) -> Path:
    """A stock folder of a tiny LLM whose turns end otherwise than its texts."""
    llm = tiny_llm("llama-tied", folder / "llm", chat_template=template)
    tokenizer = AutoTokenizer.from_pretrained(llm)
    tokenizer.add_special_tokens({"extra_special_tokens": list(special)})
    tokenizer.save_pretrained(llm)
    assemble(llm, tiny / "clip-vision", folder / "stock", prove=False, dtype="float32")
    return folder / "stock"


def test_generation_stops_where_the_template_ends_answers(tiny: Path, tmp_path: Path) -> None:
    folder = built(CHATML, tiny, tmp_path, ("<|im_start|>", "<|im_end|>"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    settings = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.convert_ids_to_tokens(settings) == ["</s>", "<|im_end|>"]
    model, processor = load_model(folder, "float32")
    described = describe_dialogue(Encoder(processor, 200), model)
    assert described == {
        "ends": ["<|im_end|>"],
        "appended": False,
        "stops": ["</s>", "<|im_end|>"],
        "thinking_off": False,
    }
    assert "answers end with <|im_end|> (written by the chat template)" in dialogue_text(described)


def older(folder: Path, template: str) -> Path:
    """The folder as another program left it: its template as it was, generation stopping at eos alone."""
    copy = folder.parent / "older"
    shutil.copytree(folder, copy)
    (copy / "chat_template.jinja").unlink()
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    settings = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(
        json.dumps({**settings, "eos_token_id": 1, "temperature": 0.5})
    )
    return copy


def test_a_folder_of_others_is_settled_as_it_was_trained(tiny: Path, tmp_path: Path) -> None:
    made = built(QWEN3, tiny, tmp_path, ("<|im_start|>", "<|im_end|>"))
    settled = AutoProcessor.from_pretrained(made).chat_template
    assert not unsettled(made)
    raw = settled[settled.index("{#- Written by lockadapt") :]
    folder = older(made, raw)
    assert AutoProcessor.from_pretrained(folder).chat_template == raw
    assert unsettled(folder)
    model, processor = load_model(folder, "float32")
    assert model.generation_config.eos_token_id == [
        1,
        processor.tokenizer.convert_tokens_to_ids("<|im_end|>"),
    ]
    copy = tmp_path / "copy"
    copy.mkdir()
    copy_configs(folder, copy)
    settle_folder(copy)
    assert not unsettled(copy)
    client: Any = AutoProcessor.from_pretrained(copy)
    assert client.chat_template == processor.chat_template
    assert GenerationConfig.from_pretrained(copy).eos_token_id == model.generation_config.eos_token_id
    encoder = Encoder(processor, 300)
    asked = encoder.prompt_ids(one_question())
    encoder.processor = client
    assert asked == stock_prompt(encoder, one_question())
    assert describe_dialogue(encoder, model)["thinking_off"]  # type: ignore[index]


def test_a_template_without_an_end_gets_eos(tiny: Path, tmp_path: Path) -> None:
    made = built("", tiny, tmp_path)
    folder = older(made, LLAVA15)
    model, processor = load_model(folder, "float32")
    described = describe_dialogue(Encoder(processor, 300), model)
    assert described is not None
    assert (described["ends"], described["appended"], described["stops"]) == (["</s>"], True, ["</s>"])
    assert "appended" in dialogue_text(described)


def test_a_settled_folder_keeps_every_byte(tiny: Path, tmp_path: Path) -> None:
    made = built("", tiny, tmp_path)
    before = {file.name: file.read_bytes() for file in made.iterdir()}
    settle_folder(made)
    assert {file.name: file.read_bytes() for file in made.iterdir()} == before


@pytest.mark.parametrize(
    ("given", "more", "right"),
    [(None, [5], 5), (1, [1], 1), (1, [5], [1, 5]), ([1, 2], [2, 7], [1, 2, 7]), ([1, 2], [2], [1, 2])],
)
def test_ends_are_added_once(given: Any, more: list[int], right: Any) -> None:
    config = GenerationConfig(eos_token_id=given)
    add_end_tokens(config, more)
    assert config.eos_token_id == right
