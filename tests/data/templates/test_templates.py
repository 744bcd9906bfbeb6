"""For every shape of template and set-up of bos and pad: labels spell answers, and prompts are the stock processor's."""

from __future__ import annotations

from importlib.resources import files

import pytest

from lockadapt.data.encode import IGNORED, Encoder
from lockadapt.data.sample import Sample, Turn, message
from lockadapt.errors import DataError
from lockadapt.models.chat_template import end_token_ids, settle_template
from tests.data.templates.corpus import SHAPES
from tests.support.templates import learned, one_question, processor_for, stock_prompt, talk

SETUPS = {"bos": (True, "<pad>"), "no-bos": (False, "<pad>"), "pad-is-eos": (True, "eos")}


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("name", SHAPES)
def test_labels_spell_answers_and_prompts_are_the_stock_processors(name: str, setup: str) -> None:
    shape = SHAPES[name]
    encoder = Encoder(processor_for(shape, *SETUPS[setup]), 500)
    earlier = shape.learned if shape.earlier is None else shape.earlier
    for sample, right in (
        (one_question(), shape.learned.format("red")),
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
    item = encoder.encode([one_question()]).encoded[0]
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
    template = Encoder(processor_for(shape), 500).processor.chat_template
    flat = (
        ""
        if shape.parts
        else files("lockadapt.models").joinpath("templates/flatten.jinja").read_text("utf-8")
    )
    assert (template == flat + shape.template) == (name in UNTOUCHED)


@pytest.mark.parametrize("name", SHAPES)
def test_system_turns_are_shown_or_refused_with_the_row(name: str) -> None:
    shape = SHAPES[name]
    encoder = Encoder(processor_for(shape), 500)
    asked = one_question()
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
    prompt = encoder.tokenizer.decode(encoder.prompt_ids(one_question()))
    assert prompt.endswith("<think>\n\n</think>\n\n")
    if "enable_thinking" in SHAPES[name].template:
        asked = processor.apply_chat_template(
            [message(turn) for turn in one_question().turns[:1]],
            add_generation_prompt=True,
            enable_thinking=True,
        )
        assert not asked.endswith("</think>\n\n")
