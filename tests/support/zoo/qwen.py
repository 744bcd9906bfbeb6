"""Qwen's VLMs, and the families that took over their processor: pixels as rows of patches, a grid, 3-D positions."""

from __future__ import annotations

from typing import Any

import transformers as hf

from tests.support.zoo.base import (
    MROPE,
    TORCHVISION,
    VISION,
    Entry,
    Made,
    image_processor,
    template,
    text_config,
    token_id,
    tokenizer,
)

PIXELS = {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
"""Fewest and most pixels of an image."""

MARKED_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
MARKED_VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"

MERGED_IN_TOWER = {
    "depth": 3,
    "hidden_size": 32,
    "out_hidden_size": 64,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 8,
}
QWEN3_TOWER = {**MERGED_IN_TOWER, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
QWEN35_TOWER = {**MERGED_IN_TOWER, "num_position_embeddings": 64}
WINDOWED_TOWER = {**MERGED_IN_TOWER, "depth": 2, "window_size": 32, "fullatt_block_indexes": [1]}

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
LINEAR_ATTENTION = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "head_dim": 32,
}


def _qwen2_vl() -> Made:
    tower = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 8, "mlp_ratio": 2}
    return _made(
        hf.Qwen2VLConfig,
        tower,
        "qwen2_vl_text",
        hf.Qwen2VLProcessor,
        hf.Qwen2VLVideoProcessor,
        template("qwen2_vl"),
    )


def _qwen2_5_vl() -> Made:
    return _made(
        hf.Qwen2_5_VLConfig,
        WINDOWED_TOWER,
        "qwen2_5_vl_text",
        hf.Qwen2_5_VLProcessor,
        hf.Qwen2VLVideoProcessor,
        template("qwen2_vl"),
        tied=True,
    )


def _qwen3_vl() -> Made:
    return _qwen3(hf.Qwen3VLConfig, QWEN3_TOWER, "qwen3_vl_text", tied=True)


def _qwen3_vl_moe() -> Made:
    return _qwen3(hf.Qwen3VLMoeConfig, QWEN3_TOWER, "qwen3_vl_moe_text", decoder_sparse_step=1, **EXPERTS)


def _qwen3_5() -> Made:
    return _qwen3(hf.Qwen3_5Config, QWEN35_TOWER, "qwen3_5_text", chat="qwen3_5", **LINEAR_ATTENTION)


def _qwen3_5_moe() -> Made:
    return _qwen3(
        hf.Qwen3_5MoeConfig,
        QWEN35_TOWER,
        "qwen3_5_moe_text",
        chat="qwen3_5",
        shared_expert_intermediate_size=64,
        **LINEAR_ATTENTION,
        **EXPERTS,
    )


def _exaone4_5() -> Made:
    tokens = tokenizer(
        "[|system|]", "[|user|]", "[|assistant|]", "<vision>", "</vision>", "<|image_pad|>", "<|video_pad|>",
        eos="[|endofturn|]",
    )  # fmt: skip
    config = hf.Exaone4_5_Config(
        text_config=text_config(
            "exaone4", tokens, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
        ),
        vision_config={**WINDOWED_TOWER, "num_key_value_heads": 2},
        image_token_id=token_id(tokens, "<|image_pad|>"),
        video_token_id=token_id(tokens, "<|video_pad|>"),
    )
    processor = hf.Exaone4_5_Processor(
        _images(),
        tokens,
        hf.Qwen2VLVideoProcessor(patch_size=8, merge_size=2),
        chat_template=template("exaone"),
    )
    return Made(config, processor)


def _video_llama_3() -> Made:
    tokens = tokenizer(
        "<|im_start|>", eos="<|im_end|>", image_token="<|image_pad|>", video_token="<|video_pad|>"
    )
    config = hf.VideoLlama3Config(
        text_config=text_config("qwen2", tokens),
        vision_config={**VISION, "patch_size": 8},
        image_token_id=token_id(tokens, "<|image_pad|>"),
        video_token_id=token_id(tokens, "<|video_pad|>"),
    )
    processor = hf.VideoLlama3Processor(
        image_processor(
            "VideoLlama3ImageProcessor", patch_size=8, merge_size=1, min_pixels=1024, max_pixels=4096
        ),
        tokens,
        hf.VideoLlama3VideoProcessor(patch_size=8),
        chat_template=template("chatml", image="<|image_pad|>", video="<|video_pad|>"),
    )
    return Made(config, processor)


def _paddleocr_vl() -> Made:
    tokens = tokenizer("<|IMAGE_START|>", "<|IMAGE_END|>", image_token="<|IMAGE_PLACEHOLDER|>")
    config = hf.PaddleOCRVLConfig(
        text_config=text_config("paddleocr_vl_text", tokens, rope_parameters=MROPE),
        vision_config={**VISION, "image_size": 64, "patch_size": 8, "spatial_merge_size": 2},
        image_token_id=token_id(tokens, "<|IMAGE_PLACEHOLDER|>"),
        vision_start_token_id=token_id(tokens, "<|IMAGE_START|>"),
        vision_end_token_id=token_id(tokens, "<|IMAGE_END|>"),
    )
    images = image_processor("PaddleOCRVLImageProcessor", patch_size=8, merge_size=2, size=PIXELS)
    return Made(config, hf.PaddleOCRVLProcessor(images, tokens, chat_template=template("paddleocr")))


def _qwen3(
    config: Any, tower: dict[str, Any], llm: str, chat: str = "", tied: bool = False, **text: Any
) -> Made:
    chat_template = template(chat) if chat else template("chatml", image=MARKED_IMAGE, video=MARKED_VIDEO)
    return _made(
        config, tower, llm, hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor, chat_template, tied=tied, **text
    )


def _made(
    config: Any,
    tower: dict[str, Any],
    llm: str,
    processor: Any,
    videos: Any,
    chat: str,
    tied: bool = False,
    **text: Any,
) -> Made:
    tokens = tokenizer(
        "<|im_start|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
        eos="<|im_end|>",
    )
    made = config(
        text_config=text_config(llm, tokens, tie_word_embeddings=tied, rope_parameters=MROPE, **text),
        vision_config=tower,
        image_token_id=token_id(tokens, "<|image_pad|>"),
        video_token_id=token_id(tokens, "<|video_pad|>"),
        vision_start_token_id=token_id(tokens, "<|vision_start|>"),
        vision_end_token_id=token_id(tokens, "<|vision_end|>"),
        tie_word_embeddings=tied,
    )
    return Made(made, processor(_images(), tokens, videos(patch_size=8, merge_size=2), chat_template=chat))


def _images() -> Any:
    return image_processor("Qwen2VLImageProcessor", patch_size=8, merge_size=2, size=PIXELS)


ENTRIES = [
    Entry("qwen2_vl", "Qwen2VLForConditionalGeneration", "qwen2_vl", _qwen2_vl, TORCHVISION),
    Entry("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", _qwen2_5_vl, TORCHVISION),
    Entry("qwen3_vl", "Qwen3VLForConditionalGeneration", "qwen3_vl", _qwen3_vl, TORCHVISION),
    Entry("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration", "qwen3_vl_moe", _qwen3_vl_moe, TORCHVISION),
    Entry("qwen3_5", "Qwen3_5ForConditionalGeneration", "qwen3_5", _qwen3_5, TORCHVISION),
    Entry("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe", _qwen3_5_moe, TORCHVISION),
    Entry("exaone4_5", "Exaone4_5_ForConditionalGeneration", "exaone4_5", _exaone4_5, TORCHVISION),
    Entry(
        "video_llama_3", "VideoLlama3ForConditionalGeneration", "video_llama_3", _video_llama_3, TORCHVISION
    ),
    Entry("paddleocr_vl", "PaddleOCRVLForConditionalGeneration", "paddleocr_vl", _paddleocr_vl),
]
