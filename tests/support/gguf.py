"""Small models for the GGUF tests: a Llama whose tokenizer is like SentencePiece's, and towers that llama.cpp reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from lockadapt.exports.gguf.tower import Colours
from tests.support.tiny import COMMON, GROUPED, SENTENCES, SIDE, VIT

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def spelling_tokenizer(*, first: str = "first") -> hf.PreTrainedTokenizerFast:
    """BPE over characters with all bytes to fall back on, as Llama 2 has it."""
    raw = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=first, split=True)
    trainer = BpeTrainer(
        vocab_size=420,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256))],
        show_progress=False,
    )
    raw.train_from_iterator(SENTENCES, trainer)
    description = json.loads(raw.to_str())
    vocabulary, learned = description["model"]["vocab"], description["model"]["merges"]
    # Training lists one pair for every piece; a tokenizer that was converted from SentencePiece lists them all.
    pieces = dict.fromkeys("".join(pair) for pair in learned)
    splits = [(piece[:i], piece[i:]) for piece in pieces for i in range(1, len(piece))]
    description["model"]["merges"] = [pair for pair in splits if set(pair) <= set(vocabulary)]
    description["added_tokens"] = description["added_tokens"][:3]
    raw = Tokenizer.from_str(json.dumps(description))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=first, split=False)
    raw.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )


COLOURS = Colours((0.4, 0.5, 0.6), (0.25, 0.5, 0.75), SIDE)
VISIONS: dict[str, tuple[Any, str]] = {
    "clip": (hf.CLIPVisionConfig, "default"),
    "siglip": (hf.SiglipVisionConfig, "full"),
}


def llava(kind: str, *, dtype: torch.dtype = torch.float32, layer: int = -2, **vision: Any) -> Any:
    """A random LLaVA."""
    config, strategy = VISIONS[kind]
    torch.manual_seed(0)
    model = hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(
            vision_config=config(**{**VIT, **vision}),
            text_config=hf.LlamaConfig(**COMMON),
            image_token_index=5,
            vision_feature_select_strategy=strategy,
            vision_feature_layer=layer,
        )
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.to(dtype).eval()


def noise(seed: int, side: int) -> Image.Image:
    """A square RGB image of coloured noise."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randint(0, 256, (side, side, 3), generator=generator, dtype=torch.uint8)
    return Image.frombytes("RGB", (side, side), data.numpy().tobytes())


def random_llama(folder: Path, **settings: Any) -> Path:
    """A Llama of random weights large enough that logits differ, with `spelling_tokenizer`."""
    torch.manual_seed(0)
    config = {
        **GROUPED,
        "vocab_size": 420,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **settings,
    }
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**config))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    spelling_tokenizer().save_pretrained(folder)
    return folder
