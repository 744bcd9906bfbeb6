"""For every shape of template and set-up of bos and pad: labels spell answers, and prompts are the stock processor's."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest
import transformers as hf
from PIL import Image

from lockadapt.data.encode import IGNORED, Encoder
from lockadapt.data.sample import ImageRef, Sample, Turn, message, question_answer
from lockadapt.errors import DataError
from lockadapt.models.chat_template import chat_template, end_token_ids, settle_template
from tests.data.templates.corpus import SHAPES, Shape
from tests.support.tiny import tiny_tokenizer

SETUPS = {"bos": (True, "<pad>"), "no-bos": (False, "<pad>"), "pad-is-eos": (True, "eos")}
PICTURE = Image.new("RGB", (40, 17), "red")


def processor_for(shape: Shape, bos: bool = True, pad: str = "<pad>") -> Any:
    """A LLaVA processor as lockadapt assembles it from a tokenizer, or as a vision-language model carries it."""
    tokenizer = tiny_tokenizer(shape.template, bos=bos)
    tokenizer.add_special_tokens({"extra_special_tokens": [*shape.special, "<image>"]})
    tokenizer.add_tokens(list(shape.ordinary))
    tokenizer.image_token = "<image>"
    tokenizer.eos_token = shape.eos
    tokenizer.pad_token = shape.eos if pad == "eos" else pad
    template = shape.template if shape.parts else chat_template(tokenizer)[0]
    tokenizer.chat_template = None
    side = {"height": 32, "width": 32}
    images = hf.CLIPImageProcessorPil(size=side, crop_size=side, do_center_crop=False)
    return hf.LlavaProcessor(
        images,
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )


def one(question: str = "is it red or blue?", answer: str = "red") -> Sample:
    return question_answer(question, answer, [ImageRef("a", picture=PICTURE)], "rows:1")


def talk() -> Sample:
    turns = (
        Turn("user", "is it red or blue?", images=1),
        Turn("assistant", "red"),
        Turn("user", "red, not yes or no?"),
        Turn("assistant", "no"),
    )
    return Sample((ImageRef("a", picture=PICTURE),), turns, "rows:2")


def learned(encoder: Encoder, sample: Sample) -> str:
    item = encoder.encode([sample]).encoded[0]
    return str(encoder.tokenizer.decode(item.input_ids[item.labels != IGNORED]))


def stock_prompt(encoder: Encoder, sample: Sample) -> list[int]:
    """What a client of the saved processor makes of the same messages and pictures."""
    last = max(n for n, turn in enumerate(sample.turns) if turn.role == "assistant")
    messages = [message(turn) for turn in sample.turns[:last]]
    for said in messages:
        for part in said["content"]:
            if part["type"] == "image":
                part["image"] = PICTURE
    made = encoder.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return [int(token) for token in made["input_ids"][0]]


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("name", SHAPES)
def test_labels_spell_answers_and_prompts_are_the_stock_processors(name: str, setup: str) -> None:
    shape = SHAPES[name]
    encoder = Encoder(processor_for(shape, *SETUPS[setup]), 500)
    earlier = shape.learned if shape.earlier is None else shape.earlier
    for sample, right in (
        (one(), shape.learned.format("red")),
        (talk(), earlier.format("red") + shape.learned.format("no")),
    ):
        assert learned(encoder, sample) == right
        prompt = encoder.prompt_ids(sample)
        assert prompt == stock_prompt(encoder, sample)
        item = encoder.encode([sample]).encoded[0]
        assert item.input_ids[: len(prompt)].tolist() == prompt
        bos = encoder.tokenizer.bos_token_id
        assert prompt.count(bos) == (
            2 if name == "llama-2" and sample.turns[2:] else int(shape.writes_bos or SETUPS[setup][0])
        )


@pytest.mark.parametrize("name", SHAPES)
def test_generation_stops_at_what_ends_an_answer(name: str) -> None:
    processor = processor_for(SHAPES[name])
    encoder = Encoder(processor, 500)
    item = encoder.encode([one()]).encoded[0]
    last = item.input_ids[item.labels != IGNORED][-1]
    assert last in end_token_ids(processor.tokenizer, processor.chat_template)


@pytest.mark.parametrize("name", SHAPES)
def test_a_settled_template_stays_as_it_is(name: str) -> None:
    processor = processor_for(SHAPES[name])
    once = settle_template(processor.tokenizer, processor.chat_template)
    assert settle_template(processor.tokenizer, once) == once


UNTOUCHED = set(SHAPES) - {"qwen-3", "qwen-3-thinking", "deepseek-r1", "smollm-3", "alpaca", "harmony"}


@pytest.mark.parametrize("name", SHAPES)
def test_only_what_needs_it_is_settled(name: str) -> None:
    shape = SHAPES[name]
    found = Encoder(processor_for(shape), 500).processor.chat_template
    flat = (
        ""
        if shape.parts
        else files("lockadapt.models").joinpath("templates/flatten.jinja").read_text("utf-8")
    )
    assert (found == flat + shape.template) == (name in UNTOUCHED)


@pytest.mark.parametrize("name", SHAPES)
def test_system_turns_are_shown_or_refused_with_the_row(name: str) -> None:
    shape = SHAPES[name]
    encoder = Encoder(processor_for(shape), 500)
    asked = one()
    sample = Sample(asked.images, (Turn("system", "be brief"), *asked.turns), "rows:7")
    if shape.system == "shown":
        assert "be brief" in encoder.tokenizer.decode(encoder.encode([sample]).encoded[0].input_ids)
        assert encoder.prompt_ids(sample) == stock_prompt(encoder, sample)
        return
    words = (
        "system"
        if shape.system == "dropped"
        else "refuses the conversation: (System role|Only user|Conversation roles)"
    )
    with pytest.raises(DataError, match=words) as error:
        encoder.encode([sample])
    assert error.value.where == "rows:7"


@pytest.mark.parametrize("name", ["qwen-3", "qwen-3-thinking", "deepseek-r1", "smollm-3"])
def test_thinking_is_off_unless_a_client_asks_for_it(name: str) -> None:
    processor = processor_for(SHAPES[name])
    encoder = Encoder(processor, 500)
    prompt = encoder.tokenizer.decode(encoder.prompt_ids(one()))
    assert prompt.endswith("<think>\n\n</think>\n\n")
    if "enable_thinking" in SHAPES[name].template:
        asked = processor.apply_chat_template(
            [message(turn) for turn in one().turns[:1]], add_generation_prompt=True, enable_thinking=True
        )
        assert not asked.endswith("</think>\n\n")
