"""Processors, conversations and prompts for the tests of chat templates."""

from __future__ import annotations

from typing import Any

import transformers as hf
from PIL import Image

from lockadapt.data.encode import IGNORED, Encoder
from lockadapt.data.sample import ImageRef, Sample, Turn, message, question_answer
from lockadapt.models.chat_template import chat_template
from tests.data.templates.corpus import Shape
from tests.support.tiny import tiny_tokenizer

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


def one_question(question: str = "is it red or blue?", answer: str = "red") -> Sample:
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
    for written in messages:
        for part in written["content"]:
            if part["type"] == "image":
                part["image"] = PICTURE
    made = encoder.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return [int(token) for token in made["input_ids"][0]]
