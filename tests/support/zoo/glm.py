"""GLM's VLMs: Qwen's kind of processor with markers of their own, and a tower that merges by a convolution."""

from __future__ import annotations

from typing import Any

import transformers as hf

from tests.support.zoo.base import (
    MROPE,
    TORCHVISION,
    Entry,
    Made,
    image_processor,
    template,
    text_config,
    token_id,
    tokenizer,
)

TOWER = {
    "depth": 2,
    "hidden_size": 32,
    "out_hidden_size": 64,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 8,
    "image_size": 64,
}
ROPE = {**MROPE, "partial_rotary_factor": 1.0}
EXPERTS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
}


def _glm4v() -> Made:
    return _made(hf.Glm4vConfig, "glm4v", hf.Glm4vProcessor, "Glm4vImageProcessor", hf.Glm4vVideoProcessor)


def _glm4v_moe() -> Made:
    return _made(
        hf.Glm4vMoeConfig,
        "glm4v_moe",
        hf.Glm4vProcessor,
        "Glm4vImageProcessor",
        hf.Glm4vVideoProcessor,
        **EXPERTS,
    )


def _glm46v() -> Made:
    return _made(
        hf.Glm46VConfig, "glm4v", hf.Glm46VProcessor, "Glm46VImageProcessor", hf.Glm46VVideoProcessor
    )


def _made(config: Any, parts: str, processor: Any, images: str, videos: Any, **text: Any) -> Made:
    tokens = tokenizer(
        "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|begin_of_image|>", "<|end_of_image|>",
        "<|image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|video|>", eos="<|endoftext|>",
    )  # fmt: skip
    made = config(
        text_config=text_config(f"{parts}_text", tokens, rope_parameters=ROPE, **text),
        vision_config={**TOWER, "model_type": f"{parts}_vision"},
        image_token_id=token_id(tokens, "<|image|>"),
        image_start_token_id=token_id(tokens, "<|begin_of_image|>"),
        image_end_token_id=token_id(tokens, "<|end_of_image|>"),
        video_token_id=token_id(tokens, "<|video|>"),
        video_start_token_id=token_id(tokens, "<|begin_of_video|>"),
        video_end_token_id=token_id(tokens, "<|end_of_video|>"),
    )
    size = {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    return Made(
        made,
        processor(
            image_processor(images, patch_size=8, merge_size=2, size=size),
            tokens,
            videos(patch_size=8, merge_size=2),
            chat_template=template("glm4v"),
        ),
    )


ENTRIES = [
    Entry("glm4v", "Glm4vForConditionalGeneration", "glm4v", _glm4v, TORCHVISION),
    Entry("glm4v_moe", "Glm4vMoeForConditionalGeneration", "glm4v_moe", _glm4v_moe, TORCHVISION),
    Entry("glm46v", "Glm46VForConditionalGeneration", "glm46v", _glm46v, TORCHVISION),
]
