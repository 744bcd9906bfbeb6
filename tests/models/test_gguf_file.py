"""A GGUF file as an LLM: the weights that Transformers dequantizes, in an ordinary folder that is made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lockadapt.architectures.assemble import assemble
from lockadapt.errors import SetupError
from lockadapt.models import gguf_file
from lockadapt.models.llms import load_llm
from lockadapt.models.quiet import quiet
from lockadapt.models.sources import find

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed (extra `gguf`)")
HIDDEN, WIDE, LAYERS, HEADS = 32, 64, 2, 4
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gguf_file, "GGUF_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def written(path: Path) -> Path:
    """A tiny Llama, its matrices in Q8_0, its tokenizer of bytes."""
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


def test_the_llm_of_a_file(cache: Path, tiny: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "llm.gguf")
    with quiet():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="llm.gguf", dtype=torch.float32)
    loaded = load_llm(file, torch.float32)
    ids = torch.tensor([[5, 9, 40, 257]])
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(ids).logits, theirs(ids).logits, rtol=0, atol=0)
    (folder,) = [path for path in cache.iterdir() if not path.name.startswith(".")]
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert tokenizer.decode(tokenizer("the cat")["input_ids"]) == "the cat"
    assert tokenizer.chat_template == CHAT
    before = (folder / "model.safetensors").stat().st_mtime_ns
    made = assemble(file, tiny / "clip-vision", tmp_path / "model", dtype="float32", prove=False)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert "quantization_config" not in (tmp_path / "model" / "config.json").read_text()
    table = made.model.get_input_embeddings().weight[:258]
    torch.testing.assert_close(table, theirs.get_input_embeddings().weight[:258], rtol=0, atol=0)


def test_what_is_no_llm(cache: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(written(tmp_path / "llm.gguf").read_bytes()[:300])
    with pytest.raises(SetupError, match="cannot be loaded"):
        find(cut, "LLM")
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(SetupError, match="is a file"):
        find(tmp_path / "text.gguf", "LLM")
    with pytest.raises(SetupError, match="the tower is a file"):
        find(tmp_path / "llm.gguf", "tower")
    assert not list(cache.glob("*"))
