"""Conversations come out as documented: the plain template, and LLMs' own templates taught about images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lockadapt.architectures.assemble import Assembled, assemble
from tests.support.tiny import tiny_llm

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe helpful.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|h|>' + message['role'] + '<|/h|>\n\n' + message['content'] | trim + '<|eot|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|h|>assistant<|/h|>\n\n' }}{% endif %}"
)
QUESTION = [{"type": "image"}, {"type": "text", "text": "what color?"}]
TALK = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
    {"role": "user", "content": "and the shape?"},
    {"role": "assistant", "content": "a circle"},
]


def _render(processor: Any, messages: list[dict[str, Any]], **settings: Any) -> str:
    return processor.apply_chat_template(messages, tokenize=False, **settings)


def _build(tiny: Path, folder: Path, template: str | None, *, bos: bool = True) -> Any:
    llm = tiny_llm("llama", folder / "llm", chat_template=template, bos=bos)
    made = assemble(llm, tiny / "clip-vision", folder / "out", dtype="float32", prove=False)
    assert made.report.template == ("own" if template else "plain")
    return made.processor


def test_plain(assembled: Assembled) -> None:
    processor = assembled.processor
    assert _render(processor, TALK[:2]) == "<s><image>what color?\nred</s>"
    assert _render(processor, TALK[:1], add_generation_prompt=True) == "<s><image>what color?\n"
    assert _render(processor, TALK) == "<s><image>what color?\nred</s>\nand the shape?\na circle</s>"
    system = [{"role": "system", "content": "Be brief."}, *TALK[:2]]
    assert _render(processor, system) == "<s>Be brief.\n<image>what color?\nred</s>"
    two = [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "a\n b "}],
        }
    ]
    assert _render(processor, two) == "<s><image><image>a\n b \n"


def test_plain_without_bos(tiny: Path, tmp_path: Path) -> None:
    processor = _build(tiny, tmp_path, None, bos=False)
    assert _render(processor, TALK[:2]) == "<image>what color?\nred</s>"


def test_a_prompt_is_the_beginning_of_its_whole(assembled: Assembled) -> None:
    for turns in (1, 3):
        prompt = _render(assembled.processor, TALK[:turns], add_generation_prompt=True)
        assert _render(assembled.processor, TALK[: turns + 1]).startswith(prompt)
        assert prompt.endswith("?\n")


@pytest.mark.parametrize(
    "message", [{"role": "tool", "content": "x"}, {"role": "user", "content": [{"type": "audio"}]}]
)
def test_plain_refuses_what_it_cannot_show(message: dict[str, Any], assembled: Assembled) -> None:
    with pytest.raises(Exception, match=r"unknown role tool|cannot show content of type audio"):
        _render(assembled.processor, [message])


def test_assistant_mask_covers_answers_and_their_end(assembled: Assembled) -> None:
    processor = assembled.processor
    talk = [dict(message) for message in TALK]
    picture = {"type": "image", "image": Image.new("RGB", (8, 8))}
    talk[0] = {"role": "user", "content": [picture, QUESTION[1]]}
    inputs = processor.apply_chat_template(
        talk,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        processor_kwargs={"return_offsets_mapping": True},
    )
    ids, mask = torch.as_tensor(inputs["input_ids"])[0], torch.as_tensor(inputs["assistant_masks"])[0].bool()
    assert processor.tokenizer.decode(ids[mask]) == "red</s>a circle</s>"
    assert int((ids == processor.tokenizer.bos_token_id).sum()) == 1


def test_chatml_learns_about_images(tiny: Path, tmp_path: Path) -> None:
    processor = _build(tiny, tmp_path, CHATML)
    assert _render(processor, TALK[:2], add_generation_prompt=True) == (
        "<|im_start|>system\nBe helpful.<|im_end|>\n<|im_start|>user\n<image>what color?<|im_end|>\n"
        "<|im_start|>assistant\nred<|im_end|>\n<|im_start|>assistant\n"
    )


def test_llama3_learns_about_images(tiny: Path, tmp_path: Path) -> None:
    processor = _build(tiny, tmp_path, LLAMA3)
    expected = "<s><|h|>user<|/h|>\n\n<image>what color?<|eot|><|h|>assistant<|/h|>\n\n"
    assert _render(processor, TALK[:1], add_generation_prompt=True) == expected
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (8, 8))}, QUESTION[1]]}],
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        return_tensors="pt",
    )
    assert int((inputs["input_ids"] == 0).sum()) == 1, "bos must stand once"
    assert int((inputs["input_ids"] == processor.image_token_id).sum()) == 16
