"""Tiny text encoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from tests.support.tiny import COMMON, ROWS, tiny_tokenizer

ENCODERS: dict[str, Callable[[], Any]] = {
    "bert": lambda: hf.BertModel(hf.BertConfig(**COMMON)),
    "roberta": lambda: hf.RobertaModel(hf.RobertaConfig(**COMMON)),
    "clip-text": lambda: hf.CLIPTextModel(hf.CLIPTextConfig(**COMMON)),
    "masked-lm": lambda: hf.BertForMaskedLM(hf.BertConfig(**COMMON)),
    "distilbert": lambda: hf.DistilBertModel(
        hf.DistilBertConfig(vocab_size=ROWS, dim=32, n_layers=2, n_heads=4, hidden_dim=48)
    ),
    "xlnet": lambda: hf.XLNetModel(
        hf.XLNetConfig(vocab_size=ROWS, d_model=32, n_layer=2, n_head=4, d_inner=48, pad_token_id=2)
    ),
    "t5": lambda: hf.T5Model(
        hf.T5Config(vocab_size=ROWS, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    ),
}


def encoder(kind: str, folder: Path) -> Path:
    """Writes a random text encoder and a tokenizer into a folder."""
    torch.manual_seed(0)
    ENCODERS[kind]().eval().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
