"""The models that are measured: random weights in a given shape, or real ones, put together by lockadapt."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from cases import sentences
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lockadapt import assemble
from lockadapt.models.quiet import quiet


@dataclass(frozen=True)
class Shape:
    """Arguments of a `LlamaConfig` and a `SiglipVisionConfig`, and the tokenizer's vocabulary size."""

    llm: dict[str, Any]
    tower: dict[str, Any]
    words: int = 700


SHAPES = {
    # SmolLM-135M's LLM and the tower of SigLIP-base at 224 px: 196 tokens an image.
    "base": Shape(
        llm={
            "hidden_size": 576,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "intermediate_size": 1536,
            "vocab_size": 49152,
            "max_position_embeddings": 2048,
        },
        tower={
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "image_size": 224,
            "patch_size": 16,
        },
    ),
    # For tests of the benchmark itself; its numbers mean nothing.
    "tiny": Shape(
        llm={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 64,
            "vocab_size": 1024,
            "max_position_embeddings": 512,
        },
        tower={
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "image_size": 32,
            "patch_size": 8,
        },
    ),
}


def build(shape: str, folder: Path) -> None:
    """Writes a stock LLaVA folder of a shape with random weights (fixed seed) to `folder`."""
    torch.manual_seed(0)
    chosen, sources = SHAPES[shape], folder.parent / f"{folder.name}-sources"
    llm = hf.LlamaForCausalLM(
        hf.LlamaConfig(**chosen.llm, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, pad_token_id=2)
    )
    tower = hf.SiglipVisionModel(hf.SiglipVisionConfig(**chosen.tower))
    side = chosen.tower["image_size"]
    processor = hf.SiglipImageProcessorPil(size={"height": side, "width": side})
    with quiet():
        llm.save_pretrained(sources / "llm")
        _tokenizer(chosen.words).save_pretrained(sources / "llm")
        tower.save_pretrained(sources / "tower")
        processor.save_pretrained(sources / "tower")
    assemble(sources / "llm", sources / "tower", folder, dtype="float32", prove=False)
    shutil.rmtree(sources)


def build_idefics3(shape: str, folder: Path) -> None:
    """Writes an Idefics3 folder with the same LLM and tower; an image is up to four tiles and the whole."""
    torch.manual_seed(0)
    chosen, scale = SHAPES[shape], 2
    side, patch = chosen.tower["image_size"], chosen.tower["patch_size"]
    tokenizer = _tokenizer(chosen.words)
    places = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    markers = ["<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>", *places]
    tokenizer.add_special_tokens({"additional_special_tokens": markers})
    config = hf.Idefics3Config(
        text_config=hf.LlamaConfig(**chosen.llm, bos_token_id=0, eos_token_id=1, pad_token_id=2),
        vision_config=chosen.tower,
        scale_factor=scale,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=2,
        tie_word_embeddings=True,
    )
    images = hf.Idefics3ImageProcessorPil(
        size={"longest_edge": 2 * side}, max_image_size={"longest_edge": side}, do_image_splitting=True
    )
    tokens = (side // patch // scale) ** 2
    processor = hf.Idefics3Processor(images, tokenizer, image_seq_len=tokens, chat_template=TEMPLATE)
    with quiet():
        hf.Idefics3ForConditionalGeneration(config).save_pretrained(folder)
        processor.save_pretrained(folder)


TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}:{% if message['content'] is string %}"
    " {{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "{{ '<image>' }}{% else %} {{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<end_of_utterance>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""As Idefics3's, and texts that are no lists as well, which TRL's rows are."""


def build_easy_vqa(real: Path, folder: Path) -> None:
    """The models of `recipes/easy-vqa.yaml`, as a stock FastVLM folder: 16 tokens an image."""
    assemble(
        real / "llm" / "tinystories-656k",
        real / "tower" / "mobilenetv2-1.0-224",
        folder,
        image_size=128,
        dtype="float32",
        prove=False,
    )


def _tokenizer(words: int) -> hf.PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=words,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(sentences(), trainer)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
