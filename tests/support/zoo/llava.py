"""LLaVA and what grew out of it: one placeholder a patch, later tiles with line breaks between their rows."""

from __future__ import annotations

import transformers as hf

from tests.support.zoo.base import (
    CLIP,
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

TILINGS = [[32, 64], [64, 32], [64, 64]]
"""Heights and widths that an image may be tiled to."""

CROPPED = {"size": {"shortest_edge": 32}, "crop_size": SQUARE}
"""CLIP's way: the shortest side to 32, then the middle."""

CLIP_TOKENS = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
"""What a processor must know of CLIP's tower: the class token is counted, then dropped."""


def _llava() -> Made:
    tokens = tokenizer("<image>", bos=True)
    config = hf.LlavaConfig(
        text_config=text_config("llama", tokens),
        vision_config=CLIP,
        image_token_index=token_id(tokens, "<image>"),
        image_seq_length=16,
    )
    images = image_processor("CLIPImageProcessor", **CROPPED)
    return Made(config, hf.LlavaProcessor(images, tokens, chat_template=template("llava"), **CLIP_TOKENS))


def _vip_llava() -> Made:
    tokens = tokenizer("<image>", bos=True)
    config = hf.VipLlavaConfig(
        text_config=text_config("llama", tokens),
        vision_config=CLIP,
        image_token_index=token_id(tokens, "<image>"),
        vision_feature_layers=[-2, -1],
        image_seq_length=16,
    )
    images = image_processor("CLIPImageProcessor", **CROPPED)
    return Made(config, hf.LlavaProcessor(images, tokens, chat_template=template("vip_llava"), **CLIP_TOKENS))


def _llava_next() -> Made:
    tokens = tokenizer("<image>", bos=True)
    config = hf.LlavaNextConfig(
        text_config=text_config("mistral", tokens, sliding_window=None),
        vision_config=CLIP,
        image_token_index=token_id(tokens, "<image>"),
        image_grid_pinpoints=TILINGS,
        image_seq_length=16,
    )
    images = image_processor("LlavaNextImageProcessor", image_grid_pinpoints=TILINGS, **CROPPED)
    return Made(
        config, hf.LlavaNextProcessor(images, tokens, chat_template=template("llava_next"), **CLIP_TOKENS)
    )


def _llava_next_video() -> Made:
    tokens = tokenizer("<image>", "<video>", bos=True)
    config = hf.LlavaNextVideoConfig(
        text_config=text_config("llama", tokens),
        vision_config=CLIP,
        image_token_index=token_id(tokens, "<image>"),
        video_token_index=token_id(tokens, "<video>"),
        image_grid_pinpoints=TILINGS,
        image_seq_length=16,
    )
    processor = hf.LlavaNextVideoProcessor(
        hf.LlavaNextVideoVideoProcessor(),
        image_processor("LlavaNextImageProcessor", image_grid_pinpoints=TILINGS, **CROPPED),
        tokens,
        chat_template=template("llava"),
        **CLIP_TOKENS,
    )
    return Made(config, processor)


def _llava_onevision() -> Made:
    tokens = tokenizer("<|im_start|>", "<image>", "<video>", eos="<|im_end|>")
    select = {"vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9"}
    config = hf.LlavaOnevisionConfig(
        text_config=text_config("qwen2", tokens),
        vision_config=SIGLIP,
        image_token_index=token_id(tokens, "<image>"),
        video_token_index=token_id(tokens, "<video>"),
        image_grid_pinpoints=TILINGS,
        vision_feature_layer=-1,
        **select,
    )
    processor = hf.LlavaOnevisionProcessor(
        image_processor("LlavaOnevisionImageProcessor", size=SQUARE, image_grid_pinpoints=TILINGS),
        tokens,
        hf.LlavaOnevisionVideoProcessor(size=SQUARE),
        num_image_tokens=16,
        chat_template=template("llava_onevision"),
        **select,
    )
    return Made(config, processor)


def _granite4_vision() -> Made:
    tokens = tokenizer("<|start_of_role|>", "<|end_of_role|>", eos="<|end_of_text|>", image_token="<image>")
    config = hf.Granite4VisionConfig(
        text_config=text_config(
            "granite4_vision_text", tokens, num_hidden_layers=3, logits_scaling=4.0, embedding_multiplier=3.0
        ),
        vision_config={**SIGLIP, "hidden_size": 64, "num_hidden_layers": 3},
        qformer_config={
            "model_type": "blip_2_qformer",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "encoder_hidden_size": 32,
            "cross_attention_frequency": 1,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        image_token_index=token_id(tokens, "<image>"),
        image_grid_pinpoints=TILINGS,
        image_seq_length=16,
        vision_feature_select_strategy="full",
        downsample_rate="1/2",
        deepstack_layer_map=[[-2, 0], [-1, 1]],
        projector_dropout=0.0,
        spatial_vision_layer=-1,
        spatial_target_layers=[2],
    )
    processor = hf.Granite4VisionProcessor(
        image_processor(
            "LlavaNextImageProcessor", size=SQUARE, crop_size=SQUARE, image_grid_pinpoints=TILINGS
        ),
        tokens,
        patch_size=8,
        vision_feature_select_strategy="full",
        downsample_rate="1/2",
        chat_template=template("granite"),
    )
    return Made(config, processor)


ENTRIES = [
    Entry("llava", "LlavaForConditionalGeneration", "llava", _llava),
    Entry("vip_llava", "VipLlavaForConditionalGeneration", "vipllava", _vip_llava),
    Entry("llava_next", "LlavaNextForConditionalGeneration", "llava_next", _llava_next),
    Entry(
        "llava_next_video",
        "LlavaNextVideoForConditionalGeneration",
        "llava_next_video",
        _llava_next_video,
        TORCHVISION,
    ),
    Entry(
        "llava_onevision",
        "LlavaOnevisionForConditionalGeneration",
        "llava_onevision",
        _llava_onevision,
        TORCHVISION,
    ),
    Entry("granite4_vision", "Granite4VisionForConditionalGeneration", "granite4_vision", _granite4_vision),
]
