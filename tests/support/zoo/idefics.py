"""Idefics and SmolVLM: images cut into tiles with a mask of pixels, tags for rows and columns in the text."""

from __future__ import annotations

from typing import Any

import transformers as hf

from tests.support.zoo.base import (
    VISION,
    Entry,
    Made,
    image_processor,
    template,
    text_config,
    token_id,
    tokenizer,
)

TILES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
MARKERS = ["<fake_token_around_image>", "<image>", "<global-img>"]


def _idefics2() -> Made:
    tokens = tokenizer("<fake_token_around_image>", "<image>", "<end_of_utterance>", bos=True)
    config = hf.Idefics2Config(
        text_config=text_config("mistral", tokens, sliding_window=None),
        vision_config={**VISION, "image_size": 64, "patch_size": 8},
        perceiver_config={
            "hidden_size": 64,
            "resampler_n_latents": 6,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 16,
            "num_key_value_heads": 1,
        },
        image_token_id=token_id(tokens, "<image>"),
    )
    images = image_processor(
        "Idefics2ImageProcessor", size={"shortest_edge": 24, "longest_edge": 48}, do_image_splitting=False
    )
    processor = hf.Idefics2Processor(images, tokens, image_seq_len=6, chat_template=template("idefics"))
    return Made(config, processor)


def _idefics3() -> Made:
    tokens = tokenizer(*MARKERS, *TILES, "<end_of_utterance>", bos=True)
    processor = hf.Idefics3Processor(
        _images("Idefics3ImageProcessor"), tokens, image_seq_len=4, chat_template=template("idefics")
    )
    return Made(_config(hf.Idefics3Config, tokens), processor)


def _smolvlm() -> Made:
    tokens = tokenizer("<|im_start|>", *MARKERS, *TILES, "<video>", eos="<end_of_utterance>")
    processor = hf.SmolVLMProcessor(
        _images("SmolVLMImageProcessor"),
        tokens,
        hf.SmolVLMVideoProcessor(),
        image_seq_len=4,
        chat_template="<|im_start|>" + template("idefics"),
    )
    return Made(_config(hf.SmolVLMConfig, tokens), processor)


def _config(config: Any, tokens: hf.PreTrainedTokenizerFast) -> hf.PreTrainedConfig:
    return config(
        text_config=text_config("llama", tokens),
        vision_config={**VISION, "image_size": 32, "patch_size": 8},
        scale_factor=2,
        image_token_id=token_id(tokens, "<image>"),
        pad_token_id=tokens.pad_token_id,
        tie_word_embeddings=False,
    )


def _images(name: str) -> Any:
    return image_processor(
        name, size={"longest_edge": 64}, max_image_size={"longest_edge": 32}, do_image_splitting=True
    )


ENTRIES = [
    Entry("idefics2", "Idefics2ForConditionalGeneration", "idefics2", _idefics2),
    Entry("idefics3", "Idefics3ForConditionalGeneration", "idefics3", _idefics3),
    Entry("smolvlm", "SmolVLMForConditionalGeneration", "smolvlm", _smolvlm, ("torchvision", "num2words")),
]
