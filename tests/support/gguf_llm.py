"""A tiny LLM in a GGUF file; needs the package `gguf`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

HIDDEN, WIDE, LAYERS, HEADS = 32, 64, 2, 4
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}"


def gguf_llm(path: Path) -> Path:
    """A tiny Llama, its matrices in Q8_0, its tokenizer of bytes."""
    import gguf

    tokens = ["<|end|>", *sorted(ByteLevel.alphabet()), "th", "the"]
    writer: Any = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, *[1] * (len(tokens) - 1)])
    writer.add_token_merges(["t h", "th e"])
    for name in ("bos", "eos", "pad"):
        getattr(writer, f"add_{name}_token_id")(0)
    writer.add_chat_template(CHAT)
    draw = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = draw.normal(0, 0.1, (rows, columns)).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    matrix("token_embd.weight", len(tokens), HIDDEN)
    for block in range(LAYERS):
        for part in ("q", "k", "v", "output"):
            matrix(f"blk.{block}.attn_{part}.weight", HIDDEN, HIDDEN)
        matrix(f"blk.{block}.ffn_gate.weight", WIDE, HIDDEN)
        matrix(f"blk.{block}.ffn_up.weight", WIDE, HIDDEN)
        matrix(f"blk.{block}.ffn_down.weight", HIDDEN, WIDE)
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{block}.{norm}.weight", np.ones(HIDDEN, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    return path
