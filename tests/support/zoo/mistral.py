"""Pixtral's tower: images of any size, their rows of patches ended by tokens of their own."""

from __future__ import annotations

from typing import Any

import transformers as hf

from tests.support.zoo.base import (
    PIXTRAL,
    TORCHVISION,
    Entry,
    Made,
    image_processor,
    template,
    text_config,
    token_id,
    tokenizer,
)

MARKERS = ["[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]


def _mistral3() -> Made:
    tokens = tokenizer(*MARKERS, bos=True)
    config = hf.Mistral3Config(
        text_config=text_config("mistral", tokens, sliding_window=None),
        vision_config=PIXTRAL,
        image_token_index=token_id(tokens, "[IMG]"),
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    processor = hf.PixtralProcessor(
        _images(16), tokens, patch_size=8, spatial_merge_size=2, chat_template=template("mistral")
    )
    return Made(config, processor)


def _pixtral(window: int | None) -> Made:
    tokens = tokenizer(*MARKERS, bos=True)
    config = hf.LlavaConfig(
        text_config=text_config("mistral", tokens, sliding_window=window),
        vision_config=PIXTRAL,
        image_token_index=token_id(tokens, "[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    processor = hf.PixtralProcessor(
        _images(8), tokens, patch_size=8, spatial_merge_size=1, chat_template=template("mistral")
    )
    return Made(config, processor)


def _lighton_ocr() -> Made:
    tokens = tokenizer(
        "<|im_start|>",
        eos="<|im_end|>",
        image_token="<|image_pad|>",
        image_break_token="<|vision_pad|>",
        image_end_token="<|vision_end|>",
    )
    config = hf.LightOnOcrConfig(
        text_config=text_config("qwen3", tokens),
        vision_config=PIXTRAL,
        image_token_id=token_id(tokens, "<|image_pad|>"),
        spatial_merge_size=2,
    )
    processor = hf.LightOnOcrProcessor(
        _images(16),
        tokens,
        patch_size=8,
        spatial_merge_size=2,
        chat_template=template("chatml", image="<|image_pad|>"),
    )
    return Made(config, processor)


def _images(side: int) -> Any:
    return image_processor(
        "PixtralImageProcessor", size={"longest_edge": 64}, patch_size={"height": side, "width": side}
    )


LLAVA = "LlavaForConditionalGeneration"

ENTRIES = [
    Entry("mistral3", "Mistral3ForConditionalGeneration", "mistral3", _mistral3, TORCHVISION),
    Entry("pixtral", LLAVA, "llava", lambda: _pixtral(None), TORCHVISION),
    Entry("pixtral_short_window", LLAVA, "llava", lambda: _pixtral(8), TORCHVISION),
    Entry("lighton_ocr", "LightOnOcrForConditionalGeneration", "lighton_ocr", _lighton_ocr, TORCHVISION),
]
