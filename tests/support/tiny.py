"""Tiny random models for tests: source LLMs and towers in Hugging Face folders, built on the spot in milliseconds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.utils import logging

from lockadapt.architectures.janus.image_tokenizer import TokenizerShape, new_image_tokenizer

SENTENCES = [
    "what color is the shape? red green blue yellow",
    "is there a circle? yes no",
    "what shape is in the image? a square, a triangle, a rectangle",
    "once upon a time there was a little dog who liked to play.",
]
ROWS = 300
"""Vocabulary rows of every tiny LLM: more than the tokenizer's, and no multiple of 64."""

SIDE = 32
"""Pixels that every tiny tower was made for."""

COMMON = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GROUPED = {**COMMON, "num_key_value_heads": 2}
GPT2 = {
    "vocab_size": ROWS,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
OPT = {**COMMON, "dropout": 0.0, "ffn_dim": 48, "word_embed_proj_dim": 32}
GEMMA = {**GROUPED, "head_dim": 8}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
XGLM = {
    "vocab_size": ROWS,
    "d_model": 32,
    "num_layers": 2,
    "attention_heads": 4,
    "ffn_dim": 48,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}

T5 = {
    "vocab_size": ROWS,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 2,
    "pad_token_id": 2,
    "eos_token_id": 1,
}

LLMS: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED, tie_word_embeddings=False)),
    "llama-tied": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED, tie_word_embeddings=True)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**GROUPED, tie_word_embeddings=False)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**GROUPED, tie_word_embeddings=True)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**GROUPED, head_dim=8, tie_word_embeddings=True)),
    "smollm3": lambda: hf.SmolLM3ForCausalLM(hf.SmolLM3Config(**GROUPED, tie_word_embeddings=True)),
    "gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**GEMMA)),
    "gemma3-text": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**GEMMA, sliding_window=16)),
    "phi3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**GROUPED)),
    "olmo2": lambda: hf.Olmo2ForCausalLM(hf.Olmo2Config(**GROUPED)),
    "gpt-neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**COMMON)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
    "opt": lambda: hf.OPTForCausalLM(hf.OPTConfig(**OPT)),
    "bloom": lambda: hf.BloomForCausalLM(
        hf.BloomConfig(vocab_size=ROWS, hidden_size=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1)
    ),
}
"""LLMs that the stock classes can hold."""

ODD_LLMS: dict[str, Callable[[], Any]] = {
    "phi": lambda: _with_head_bias(hf.PhiForCausalLM(hf.PhiConfig(**GROUPED))),
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**GEMMA)),
    "cohere": lambda: hf.CohereForCausalLM(hf.CohereConfig(**GROUPED, logit_scale=0.0625)),
    "granite": lambda: hf.GraniteForCausalLM(hf.GraniteConfig(**GROUPED, logits_scaling=8.0)),
    "opt-350m": lambda: hf.OPTForCausalLM(hf.OPTConfig(**{**OPT, "word_embed_proj_dim": 16})),
    "bert": lambda: hf.BertLMHeadModel(hf.BertConfig(**COMMON, **NO_DROPOUT, is_decoder=True)),
    "roberta": lambda: hf.RobertaForCausalLM(hf.RobertaConfig(**COMMON, **NO_DROPOUT, is_decoder=True)),
    "electra": lambda: hf.ElectraForCausalLM(
        hf.ElectraConfig(**COMMON, **NO_DROPOUT, embedding_size=32, is_decoder=True)
    ),
    "xglm": lambda: hf.XGLMForCausalLM(hf.XGLMConfig(**XGLM)),
    "xlnet": lambda: hf.XLNetLMHeadModel(
        hf.XLNetConfig(vocab_size=ROWS, d_model=32, n_layer=2, n_head=4, d_inner=48, pad_token_id=2)
    ),
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)),
    "flan-t5": lambda: _with_own_head(
        hf.T5ForConditionalGeneration(
            hf.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
        )
    ),
}
"""LLMs that LLaVA cannot hold: some lie in other classes, XLNet only in the dual encoder."""

VIT = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
}
WIDE = {**VIT, "hidden_size": 64, "num_attention_heads": 4}
"""Heads of a windowed Q-Former are 64 channels wide."""
CLIP_TEXT = {**COMMON, "hidden_size": 16, "max_position_embeddings": 16}

TOWERS: dict[str, Callable[[], Any]] = {
    "clip-vision": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**VIT)),
    "clip": lambda: hf.CLIPModel(
        hf.CLIPConfig(text_config=hf.CLIPTextConfig(**CLIP_TEXT), vision_config=hf.CLIPVisionConfig(**VIT))
    ),
    "siglip-vision": lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**VIT)),
    "siglip": lambda: hf.SiglipModel(
        hf.SiglipConfig(
            text_config=hf.SiglipTextConfig(**CLIP_TEXT), vision_config=hf.SiglipVisionConfig(**VIT)
        )
    ),
    "dinov2": lambda: hf.Dinov2Model(hf.Dinov2Config(**_without(VIT, "intermediate_size"))),
    "dinov2-registers": lambda: hf.Dinov2WithRegistersModel(
        hf.Dinov2WithRegistersConfig(**_without(VIT, "intermediate_size"), num_register_tokens=4)
    ),
    "vit": lambda: hf.ViTModel(hf.ViTConfig(**VIT)),
    "vit-classifier": lambda: hf.ViTForImageClassification(hf.ViTConfig(**VIT)),
    "clip-wide": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**WIDE)),
    "siglip-wide": lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**WIDE)),
    "convnext": lambda: hf.ConvNextModel(
        hf.ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1])
    ),
    "resnet": lambda: hf.ResNetForImageClassification(
        hf.ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 12, 16, 20],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            num_labels=3,
        )
    ),
    "mobilenet-v2": lambda: hf.MobileNetV2ForImageClassification(
        hf.MobileNetV2Config(depth_multiplier=0.25, num_labels=3, image_size=SIDE)
    ),
}
"""Towers that the stock classes can hold; the first letters of the class that holds them follow from the shapes."""

FEATURE_MAPS = ("convnext", "resnet", "mobilenet-v2")


def tiny_tokenizer(
    chat_template: str | None = None, *, bos: bool = True, eos: bool = False
) -> hf.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of under 300 pieces: `<s>` 0, `</s>` 1, `<pad>` 2; `bos` puts `<s>` before texts.

    `eos` puts `</s>` behind them, and knows no bos, as T5's tokenizer does.
    """
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(SENTENCES, trainer)
    if bos:
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    if eos:
        raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=None if eos else "<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=chat_template,
    )


def tiny_llm(
    kind: str, folder: Path, *, seed: int = 0, chat_template: str | None = None, bos: bool = True
) -> Path:
    """Save a random LLM of `LLMS` or `ODD_LLMS` with a tokenizer to `folder`; return it."""
    torch.manual_seed(seed)
    model = (LLMS | ODD_LLMS)[kind]().eval()
    with _silent():
        model.save_pretrained(folder)
        coded = model.config.is_encoder_decoder
        tiny_tokenizer(chat_template, bos=bos and not coded, eos=coded).save_pretrained(folder)
    return folder


def tiny_tower(kind: str, folder: Path, *, seed: int = 0) -> Path:
    """Save a random tower of `TOWERS` with an image processor to `folder`; return it."""
    torch.manual_seed(seed)
    model = TOWERS[kind]().eval()
    _wake(model)
    side = {"height": SIDE, "width": SIDE}
    if kind.startswith("clip"):
        processor: Any = hf.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=side)
    elif kind.startswith("dinov2"):
        processor = hf.BitImageProcessorPil(size={"shortest_edge": SIDE + 8}, crop_size=side)
    elif kind == "convnext":
        processor = hf.ConvNextImageProcessorPil(size={"shortest_edge": 64}, crop_pct=0.875)
    elif kind == "mobilenet-v2":
        processor = hf.MobileNetV2ImageProcessorPil(
            size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}
        )
    elif kind == "resnet":
        processor = hf.ViTImageProcessorPil(size={"height": 64, "width": 64})
    else:
        processor = hf.ViTImageProcessorPil(size=side)
    with _silent():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder


def tiny_image_tokenizer(folder: Path, *, grid: int = 4, codes: int = 24, seed: int = 0) -> Path:
    """Save a random image tokenizer for images of four times `grid` pixels to `folder`; return it."""
    shape = TokenizerShape(4 * grid, grid, codebook_size=codes, code_size=4, width=32, blocks=0, latent=8)
    model, processor = new_image_tokenizer(shape, seed)
    with _silent():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder


@torch.no_grad()
def _wake(model: Any) -> None:
    """Make a random CNN see: fresh ones return nearly the same for every image, which would hide mistakes."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for module in model.modules() if norms else ():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    for norm in norms:
        norm.momentum = 0.5
    for name, parameter in model.named_parameters():
        if name.endswith("layer_scale_parameter"):
            parameter.fill_(1.0)
    if norms:
        model.train()
        for _ in range(6):
            model(torch.randn(8, 3, 64, 64))
        model.eval()


def _with_own_head(model: Any) -> Any:
    """The head of T5 1.1 is stored beside the embedding, whatever the config says of ties."""
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    return model


def _with_head_bias(model: Any) -> Any:
    torch.nn.init.normal_(model.lm_head.bias)
    return model


def _without(settings: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != name}


@contextlib.contextmanager
def _silent() -> Any:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
