"""Gemma's VLMs: image tokens that see each other both ways, windows, soft-capped logits, and PaliGemma's prefix."""

from __future__ import annotations

from typing import Any

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

LAYERS = ["sliding_attention", "full_attention"]
LONG, SHORT = 4096, 8
"""Windows: longer than any sample, and shorter than every one."""


def _gemma3(window: int) -> Made:
    tokens = tokenizer(
        "<start_of_turn>",
        bos=True,
        eos="<end_of_turn>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
    )
    config = hf.Gemma3Config(
        text_config=text_config("gemma3_text", tokens, sliding_window=window, layer_types=LAYERS),
        vision_config=SIGLIP,
        mm_tokens_per_image=4,
        boi_token_index=token_id(tokens, "<start_of_image>"),
        eoi_token_index=token_id(tokens, "<end_of_image>"),
        image_token_index=token_id(tokens, "<image_soft_token>"),
    )
    images = image_processor("Gemma3ImageProcessor", size=SQUARE)
    processor = hf.Gemma3Processor(images, tokens, image_seq_length=4, chat_template=template("gemma3"))
    return Made(config, processor)


def _gemma3n() -> Made:
    tokens = tokenizer(
        "<start_of_turn>",
        bos=True,
        eos="<end_of_turn>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
        boa_token="<start_of_audio>",
        eoa_token="<end_of_audio>",
        audio_token="<audio_soft_token>",
    )
    config = hf.Gemma3nConfig(
        text_config=text_config(
            "gemma3n_text",
            tokens,
            intermediate_size=[128, 128],
            layer_types=LAYERS,
            sliding_window=LONG,
            num_kv_shared_layers=0,
            vocab_size_per_layer_input=len(tokens),
            hidden_size_per_layer_input=8,
            laurel_rank=4,
            activation_sparsity_pattern=[0.0, 0.0],
            final_logit_softcapping=5.0,
        ),
        # In place of MobileNetV5, whose smallest is 300M: a tower that timm has for tests, 64 pixels to 2 x 2 places.
        vision_config={
            "architecture": "test_efficientnet_ln",
            "hidden_size": 256,
            "vocab_size": 8,
            "vocab_offset": len(tokens),
        },
        audio_config={
            "hidden_size": 32,
            "conf_num_hidden_layers": 1,
            "conf_num_attention_heads": 2,
            "vocab_size": 8,
            "vocab_offset": len(tokens) + 8,
        },
        image_token_id=token_id(tokens, "<image_soft_token>"),
        audio_token_id=token_id(tokens, "<audio_soft_token>"),
        vision_soft_tokens_per_image=4,
    )
    processor = hf.Gemma3nProcessor(
        hf.Gemma3nAudioFeatureExtractor(),
        image_processor("SiglipImageProcessor", size={"height": 64, "width": 64}),
        tokens,
        image_seq_length=4,
        chat_template=template("gemma3").replace("<start_of_image>", "<image_soft_token>"),
    )
    return Made(config, processor)


def _gemma4(window: int) -> Made:
    tokens = tokenizer(
        "<|turn>",
        "<|video|>",
        bos=True,
        eos="<turn|>",
        boi_token="<|image>",
        eoi_token="<image|>",
        image_token="<|image|>",
        boa_token="<|audio>",
        eoa_token="<audio|>",
        audio_token="<|audio|>",
    )
    config = hf.Gemma4Config(
        text_config=text_config(
            "gemma4_text",
            tokens,
            sliding_window=window,
            layer_types=LAYERS,
            vocab_size_per_layer_input=len(tokens),
            hidden_size_per_layer_input=8,
            global_head_dim=16,
            final_logit_softcapping=5.0,
            use_bidirectional_attention="vision",
        ),
        vision_config={
            **VISION,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "patch_size": 8,
            "pooling_kernel_size": 2,
            "position_embedding_size": 64,
        },
        audio_config=None,
        boi_token_id=token_id(tokens, "<|image>"),
        eoi_token_id=token_id(tokens, "<image|>"),
        image_token_id=token_id(tokens, "<|image|>"),
        audio_token_id=token_id(tokens, "<|audio|>"),
        video_token_id=token_id(tokens, "<|video|>"),
    )
    processor = hf.Gemma4Processor(
        hf.Gemma4AudioFeatureExtractor(),
        image_processor("Gemma4ImageProcessor", patch_size=8, max_soft_tokens=70, pooling_kernel_size=2),
        tokens,
        hf.Gemma4VideoProcessor(),
        image_seq_length=70,
        chat_template=template("gemma4"),
    )
    return Made(config, processor)


def _paligemma() -> Made:
    return _prefix_lm("gemma")


def _paligemma2() -> Made:
    return _prefix_lm("gemma2", sliding_window=16, layer_types=LAYERS, final_logit_softcapping=5.0)


def _prefix_lm(llm: str, **text: Any) -> Made:
    tokens = tokenizer("<image>", bos=True)
    images = image_processor("SiglipImageProcessor", size=SQUARE)
    images.image_seq_length = 16
    # The processor adds its 1,152 tokens for places and segments, so that the vocabulary is known after it.
    processor = hf.PaliGemmaProcessor(images, tokens, chat_template=template("paligemma"))
    config = hf.PaliGemmaConfig(
        text_config=text_config(llm, tokens, **text),
        vision_config={**SIGLIP, "projection_dim": 64},
        projection_dim=64,
        image_token_index=token_id(tokens, "<image>"),
        pad_token_id=tokens.pad_token_id,
    )
    return Made(config, processor)


GEMMA3, GEMMA4 = "Gemma3ForConditionalGeneration", "Gemma4ForConditionalGeneration"
PALIGEMMA = "PaliGemmaForConditionalGeneration"

ENTRIES = [
    Entry("gemma3", GEMMA3, "gemma3", lambda: _gemma3(LONG)),
    Entry("gemma3_short_window", GEMMA3, "gemma3", lambda: _gemma3(SHORT)),
    Entry("gemma3n", "Gemma3nForConditionalGeneration", "gemma3n", _gemma3n, ("torchvision", "timm")),
    Entry("gemma4", GEMMA4, "gemma4", lambda: _gemma4(LONG), TORCHVISION),
    Entry("gemma4_short_window", GEMMA4, "gemma4", lambda: _gemma4(SHORT), TORCHVISION),
    Entry("paligemma", PALIGEMMA, "paligemma", _paligemma),
    Entry("paligemma2", PALIGEMMA, "paligemma", _paligemma2),
]
