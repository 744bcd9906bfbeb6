"""InternVL, and others with tiles and a ChatML or DeepSeek conversation: Ovis2, DeepSeek-VL, LFM2-VL, Aria."""

from __future__ import annotations

import transformers as hf

from tests.support.zoo.base import (
    SIGLIP,
    SQUARE,
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


def _internvl(window: int | None) -> Made:
    tokens = tokenizer(
        "<|im_start|>",
        eos="<|im_end|>",
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    sliding = {
        "use_sliding_window": True,
        "sliding_window": window,
        "layer_types": ["full_attention", "sliding_attention"],
    }
    config = hf.InternVLConfig(
        text_config=text_config("qwen2", tokens, **(sliding if window else {})),
        vision_config={**VISION, "image_size": [32, 32], "patch_size": [8, 8]},
        image_token_id=token_id(tokens, "<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    processor = hf.InternVLProcessor(
        image_processor(
            "GotOcr2ImageProcessor", size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=4
        ),
        tokens,
        hf.InternVLVideoProcessor(),
        image_seq_length=4,
        chat_template=template("internvl"),
    )
    return Made(config, processor)


def _ovis2() -> Made:
    indicators = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    tokens = tokenizer("<|im_start|>", "<image>", "<IMG_ATOM>", *indicators, eos="<|im_end|>")
    config = hf.Ovis2Config(
        text_config=text_config("qwen2", tokens),
        vision_config={**VISION, "image_size": 32, "patch_size": 8, "hidden_stride": 2, "vocab_size": 24},
        image_token_id=token_id(tokens, "<IMG_ATOM>"),
        visual_indicator_token_ids=[token_id(tokens, indicator) for indicator in indicators],
        vocab_size=len(tokens),
        hidden_size=64,
    )
    processor = hf.Ovis2Processor(
        image_processor("Ovis2ImageProcessor", size=SQUARE, crop_to_patches=True, max_patches=4),
        tokens,
        image_seq_length=4,
        chat_template=template("chatml", image="<image>\n"),
    )
    return Made(config, processor)


def _deepseek_vl() -> Made:
    tokens = tokenizer(bos=True, image_token="<image_placeholder>")
    config = hf.DeepseekVLConfig(
        text_config=text_config("llama", tokens),
        vision_config=SIGLIP,
        image_token_id=token_id(tokens, "<image_placeholder>"),
    )
    processor = hf.DeepseekVLProcessor(
        image_processor("DeepseekVLImageProcessor", size=SQUARE),
        tokens,
        num_image_tokens=16,
        chat_template=template("deepseek_vl"),
    )
    return Made(config, processor)


def _lfm2_vl() -> Made:
    tiles = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)]
    tokens = tokenizer(
        "<|im_start|>", "<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>", *tiles,
        bos=True, eos="<|im_end|>",
    )  # fmt: skip
    config = hf.Lfm2VlConfig(
        text_config=text_config(
            "lfm2",
            tokens,
            layer_types=["conv", "full_attention"],
            block_multiple_of=8,
            block_auto_adjust_ff_dim=False,
        ),
        vision_config={
            **VISION,
            "model_type": "siglip2_vision_model",
            "num_patches": 64,
            "patch_size": 8,
            "vision_use_head": False,
        },
        image_token_id=token_id(tokens, "<image>"),
        projector_hidden_size=48,
    )
    images = image_processor(
        "Lfm2VlImageProcessor",
        tile_size=64,
        encoder_patch_size=8,
        min_image_tokens=4,
        max_image_tokens=16,
        max_num_patches=64,
        min_tiles=2,
        max_tiles=4,
        do_image_splitting=False,
    )
    chat_template = "{{- bos_token }}" + template("chatml")
    return Made(config, hf.Lfm2VlProcessor(images, tokens, chat_template=chat_template))


def _aria() -> Made:
    tokens = tokenizer(
        "<|im_start|>", "<fim_prefix>", "<fim_suffix>", eos="<|im_end|>", image_token="<|img|>"
    )
    config = hf.AriaConfig(
        text_config=text_config("aria_text", tokens, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
        vision_config={**VISION, "model_type": "idefics3_vision", "image_size": 980, "patch_size": 70},
        image_token_index=token_id(tokens, "<|img|>"),
        projector_patch_to_query_dict={196: 4},
    )
    images = image_processor("AriaImageProcessor", max_image_size=980, min_image_size=336)
    chat_template = template("chatml", image="<fim_prefix><|img|><fim_suffix>")
    return Made(
        config, hf.AriaProcessor(images, tokens, size_conversion={980: 4}, chat_template=chat_template)
    )


INTERNVL = "InternVLForConditionalGeneration"

ENTRIES = [
    Entry("internvl", INTERNVL, "internvl", lambda: _internvl(None), TORCHVISION),
    Entry("internvl_short_window", INTERNVL, "internvl", lambda: _internvl(8), TORCHVISION),
    Entry("ovis2", "Ovis2ForConditionalGeneration", "ovis2", _ovis2),
    Entry("deepseek_vl", "DeepseekVLForConditionalGeneration", "deepseek_vl", _deepseek_vl),
    Entry("lfm2_vl", "Lfm2VlForConditionalGeneration", "lfm2_vl", _lfm2_vl, TORCHVISION),
    Entry("aria", "AriaForConditionalGeneration", "aria", _aria),
]
