"""Llama's VLMs and PerceptionLM: Llama 3's headers; cross-attention, experts, and a tower from timm."""

from __future__ import annotations

import transformers as hf

from tests.support.zoo.base import (
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

HEADERS = ["<|start_header_id|>", "<|end_header_id|>"]
PATCHED = {**VISION, "image_size": 32, "patch_size": 8}


def _mllama() -> Made:
    tokens = tokenizer(*HEADERS, "<|python_tag|>", "<|image|>", bos=True, eos="<|eot_id|>")
    config = hf.MllamaConfig(
        # The embedding table has eight rows more than the head, among them the image's, as in Llama 3.2.
        text_config=text_config(
            "mllama_text_model",
            tokens,
            num_hidden_layers=3,
            cross_attention_layers=[1],
            vocab_size=token_id(tokens, "<|image|>"),
        ),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "max_num_tiles": 4,
            "intermediate_layers_indices": [0, 1],
            "vision_output_dim": 96,
            "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
        },
        image_token_index=token_id(tokens, "<|image|>"),
    )
    images = image_processor("MllamaImageProcessor", size=SQUARE, max_image_tiles=4)
    return Made(config, hf.MllamaProcessor(images, tokens, chat_template=template("llama3")))


def _llama4() -> Made:
    tokens = tokenizer(
        *HEADERS, "<|image|>", "<|image_start|>", "<|image_end|>", "<|patch|>", "<|tile_x_separator|>",
        "<|tile_y_separator|>", bos=True, eos="<|eot_id|>",
    )  # fmt: skip
    config = hf.Llama4Config(
        text_config=text_config(
            "llama4_text",
            tokens,
            intermediate_size=64,
            intermediate_size_mlp=128,
            num_local_experts=2,
            num_experts_per_tok=1,
            interleave_moe_layer_step=2,
            attention_chunk_size=4096,
        ),
        vision_config={
            **PATCHED,
            "intermediate_size": 128,
            "vision_output_dim": 32,
            "projector_input_dim": 32,
            "projector_output_dim": 32,
        },
        image_token_index=token_id(tokens, "<|patch|>"),
        boi_token_index=token_id(tokens, "<|image_start|>"),
        eoi_token_index=token_id(tokens, "<|image_end|>"),
    )
    images = image_processor("Llama4ImageProcessor", size=SQUARE, max_patches=4)
    return Made(config, hf.Llama4Processor(images, tokens, patch_size=8, chat_template=template("llama3")))


def _perception_lm() -> Made:
    tokens = tokenizer(*HEADERS, bos=True, eos="<|eot_id|>", image_token="<|image|>", video_token="<|video|>")
    config = hf.PerceptionLMConfig(
        text_config=text_config("llama", tokens),
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": "vit_pe_core_large_patch14_336",
            "do_pooling": True,
            "num_classes": 32,
            "global_pool": "map",
            "model_args": {
                "embed_dim": 32,
                "img_size": [32, 32],
                "depth": 2,
                "num_heads": 2,
                "global_pool": "",
                "use_post_transformer_norm": False,
                "init_values": 0.1,
                "ref_feat_shape": [4, 4],
                "patch_size": 8,
            },
        },
        vision_use_cls_token=True,
        projector_pooling_ratio=2,
        image_token_id=token_id(tokens, "<|image|>"),
        video_token_id=token_id(tokens, "<|video|>"),
    )
    processor = hf.PerceptionLMProcessor(
        hf.PerceptionLMVideoProcessor(),
        hf.PerceptionLMImageProcessor(vision_input_type="thumb", tile_size=32, max_num_tiles=4),
        tokens,
        patch_size=8,
        pooling_ratio=2,
        chat_template=template("llama3"),
    )
    return Made(config, processor)


ENTRIES = [
    Entry("mllama", "MllamaForConditionalGeneration", "mllama", _mllama),
    Entry("llama4", "Llama4ForConditionalGeneration", "llama4", _llama4, TORCHVISION, raises=AttributeError),
    Entry(
        "perception_lm",
        "PerceptionLMForConditionalGeneration",
        "perception_lm",
        _perception_lm,
        ("torchvision", "timm"),
    ),
]
