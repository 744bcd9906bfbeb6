"""Molmo2, and classes whose formats no generic rule serves: Q-Formers, an encoder-decoder, a grounded LLM."""

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

PATCHED = {**VISION, "image_size": 32, "patch_size": 8}
QFORMER = {
    **VISION,
    "encoder_hidden_size": 32,
    "vocab_size": 700,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def _molmo2() -> Made:
    markers = {
        "image_start_token_id": "<im_start>",
        "low_res_image_start_token_id": "<low_res_im_start>",
        "image_end_token_id": "<im_end>",
        "image_patch_id": "<im_patch>",
        "image_col_id": "<im_col>",
        "frame_start_token_id": "<frame_start>",
        "frame_end_token_id": "<frame_end>",
        "image_low_res_id": "<im_low>",
    }
    # Tokens that follow the LLM's vocabulary have a table of their own: they must come last.
    tokens = tokenizer(
        "<|im_start|>", "<|im_end|>", "<|image|>", "<|video|>", *markers.values(), eos="<|im_end|>"
    )
    config = hf.Molmo2Config(
        text_config=text_config(
            "molmo2_text",
            tokens,
            vocab_size=len(tokens) - len(markers),
            additional_vocab_size=len(markers),
        ),
        vision_config={
            **VISION,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "image_size": [32, 32],
            "patch_size": 8,
        },
        adapter_config={
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 48,
            "text_hidden_size": 64,
            "vision_feature_layer": [-1, -2],
        },
        **{key: token_id(tokens, marker) for key, marker in markers.items()},
    )
    images = hf.Molmo2ImageProcessor(
        size=SQUARE, max_crops=2, overlap_margins=[1, 1], patch_size=8, pooling_size=[2, 2]
    )
    processor = hf.Molmo2Processor(
        images, hf.Molmo2VideoProcessor(), tokens, chat_template=template("chatml", image="<|image|>")
    )
    return Made(config, processor)


def _blip2() -> Made:
    tokens = tokenizer("<image>", bos=True)
    config = hf.Blip2Config(
        text_config={
            "model_type": "opt",
            "vocab_size": len(tokens),
            "hidden_size": 64,
            "word_embed_proj_dim": 64,
            "ffn_dim": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
            "pad_token_id": tokens.pad_token_id,
            "dropout": 0.0,
        },
        vision_config=PATCHED,
        qformer_config=QFORMER,
        num_query_tokens=4,
        image_token_index=token_id(tokens, "<image>"),
    )
    images = image_processor("BlipImageProcessor", size=SQUARE)
    return Made(config, hf.Blip2Processor(images, tokens, num_query_tokens=4))


def _instructblip() -> Made:
    tokens = tokenizer("<image>", bos=True)
    config = hf.InstructBlipConfig(
        text_config=text_config("llama", tokens),
        vision_config=PATCHED,
        qformer_config=QFORMER,
        num_query_tokens=4,
        image_token_index=token_id(tokens, "<image>"),
    )
    images = image_processor("BlipImageProcessor", size=SQUARE)
    return Made(config, hf.InstructBlipProcessor(images, tokens, tokenizer(bos=True), num_query_tokens=4))


def _kosmos2() -> Made:
    tokens = tokenizer(
        "<image>", "</image>", "<object>", "</object>", "<phrase>", "</phrase>",
        "</delimiter_of_multi_objects/>", "<grounding>", "<patch_index_0000>", bos=True,
    )  # fmt: skip
    images = image_processor("CLIPImageProcessor", size={"shortest_edge": 32}, crop_size=SQUARE)
    # The processor adds the tokens of its grid, so that the vocabulary is known after it.
    processor = hf.Kosmos2Processor(images, tokens, num_patch_index_tokens=16)
    config = hf.Kosmos2Config(
        text_config={
            "vocab_size": len(tokens),
            "embed_dim": 64,
            "layers": 2,
            "ffn_dim": 128,
            "attention_heads": 4,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "max_position_embeddings": 512,
        },
        vision_config=PATCHED,
        latent_query_num=64,
    )
    return Made(config, processor)


def _florence2() -> Made:
    tokens = tokenizer(bos=True, image_token="<image>")
    images = image_processor("CLIPImageProcessor", size={"height": 64, "width": 64}, do_center_crop=False)
    images.image_seq_length = 5
    config = hf.Florence2Config(
        text_config={
            "model_type": "bart",
            "vocab_size": len(tokens),
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "max_position_embeddings": 512,
            "dropout": 0.0,
            "pad_token_id": tokens.pad_token_id,
            "is_encoder_decoder": True,
        },
        vision_config={
            "depths": (1, 1, 1, 1),
            "embed_dim": (16, 16, 32, 32),
            "num_heads": (2, 2, 2, 2),
            "num_groups": (2, 2, 2, 2),
            "window_size": 4,
            "drop_path_rate": 0.0,
            "projection_dim": 64,
            "max_position_embeddings": 50,
        },
        image_token_id=token_id(tokens, "<image>"),
        is_encoder_decoder=True,
    )
    return Made(config, hf.Florence2Processor(images, tokens))


ENTRIES = [
    Entry("molmo2", "Molmo2ForConditionalGeneration", "molmo2", _molmo2, TORCHVISION),
    Entry(
        "blip2",
        "Blip2ForConditionalGeneration",
        "blip-2",
        _blip2,
        prompt="Question: {question} Answer:",
    ),
    Entry(
        "instructblip",
        "InstructBlipForConditionalGeneration",
        "instructblip",
        _instructblip,
        prompt="{question}",
    ),
    Entry(
        "kosmos2",
        "Kosmos2ForConditionalGeneration",
        "kosmos-2",
        _kosmos2,
        prompt="<grounding> Question: {question} Answer:",
    ),
    Entry(
        "florence2", "Florence2ForConditionalGeneration", "florence2", _florence2, prompt="<VQA>{question}"
    ),
]
