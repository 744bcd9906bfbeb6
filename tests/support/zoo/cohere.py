"""Cohere's VLMs: Aya Vision and Command A Vision; parallel blocks, three layers of four with a window."""

from __future__ import annotations

from typing import Any

import transformers as hf

from tests.support.zoo.base import (
    SIGLIP,
    SQUARE,
    TORCHVISION,
    Entry,
    Made,
    image_processor,
    template,
    text_config,
    token_id,
    tokenizer,
)

LONG, SHORT = 4096, 8
TURNS = [
    "<|START_OF_TURN_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
    "<|START_RESPONSE|>",
    "<|END_RESPONSE|>",
]
TILES = ["TILE", "TILE_GLOBAL", *[f"TILE_{number}" for number in range(1, 13)]]


def _aya_vision(window: int) -> Made:
    tokens = tokenizer(
        *TURNS, "<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", *TILES,
        bos=True, eos="<|END_OF_TURN_TOKEN|>",
    )  # fmt: skip
    config = hf.AyaVisionConfig(
        text_config=_text(tokens, window),
        vision_config=SIGLIP,
        image_token_index=token_id(tokens, "<|IMG_PATCH|>"),
    )
    processor = hf.AyaVisionProcessor(
        image_processor("GotOcr2ImageProcessor", size=SQUARE, crop_to_patches=True, max_patches=4),
        tokens,
        patch_size=8,
        img_size=32,
        downsample_factor=2,
        chat_template=template("cohere"),
    )
    return Made(config, processor)


def _cohere2_vision(window: int) -> Made:
    tokens = tokenizer(
        *TURNS,
        bos=True,
        eos="<|END_OF_TURN_TOKEN|>",
        boi_token="<|START_OF_IMG|>",
        eoi_token="<|END_OF_IMG|>",
        image_token="<|IMG_PATCH|>",
        img_line_break_token="<|IMG_LINE_BREAK|>",
    )
    config = hf.Cohere2VisionConfig(
        text_config=_text(tokens, window),
        vision_config=SIGLIP,
        image_token_id=token_id(tokens, "<|IMG_PATCH|>"),
        alignment_intermediate_size=64,
    )
    processor = hf.Cohere2VisionProcessor(
        image_processor("Cohere2VisionImageProcessor", size=SQUARE, patch_size=2, max_patches=4),
        tokens,
        chat_template=template("cohere", image="<|IMG_PATCH|>"),
    )
    return Made(config, processor)


def _text(tokens: hf.PreTrainedTokenizerFast, window: int) -> dict[str, Any]:
    return text_config(
        "cohere2", tokens, sliding_window=window, layer_types=["sliding_attention", "full_attention"]
    )


AYA, COMMAND = "AyaVisionForConditionalGeneration", "Cohere2VisionForConditionalGeneration"

ENTRIES = [
    Entry("aya_vision", AYA, "aya_vision", lambda: _aya_vision(LONG)),
    Entry("aya_vision_short_window", AYA, "aya_vision", lambda: _aya_vision(SHORT)),
    Entry("cohere2_vision", COMMAND, "cohere2_vision", lambda: _cohere2_vision(LONG), TORCHVISION),
    Entry(
        "cohere2_vision_short_window", COMMAND, "cohere2_vision", lambda: _cohere2_vision(SHORT), TORCHVISION
    ),
]
