"""The LLM of a stock model as a causal LM folder: same logits, right class, no padding rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lockadapt.architectures.assemble import assemble
from lockadapt.exports.gguf.text import llm_tensors, vocabulary_rows, write_llm
from tests.support.tiny import tiny_llm, tiny_tower


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "qwen2", "gemma3-text", "gpt-neox", "gpt2"])
def test_folder_holds_the_llm(kind: str, tmp_path: Path) -> None:
    sources = tiny_llm(kind, tmp_path / "llm"), tiny_tower("siglip-vision", tmp_path / "tower")
    done = assemble(*sources, None, dtype="float32", prove=False)
    rows = vocabulary_rows(done.processor.tokenizer)
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        expected = done.model(input_ids=ids).logits[..., :rows]
    assert done.model.get_input_embeddings().weight.shape[0] > rows
    (tmp_path / "text").mkdir()
    assert write_llm(done.model, done.processor, tmp_path / "text") == ()
    config = json.loads((tmp_path / "text" / "config.json").read_text())
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "text", output_loading_info=True)
    assert config["architectures"] == [type(model).__name__]
    assert config["vocab_size"] == rows
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(input_ids=ids).logits, expected, rtol=0, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "text")
    assert tokenizer.chat_template == done.processor.chat_template
    assert tokenizer("a red dog").input_ids == done.processor.tokenizer("a red dog").input_ids


def test_dtype_is_kept(tmp_path: Path) -> None:
    sources = tiny_llm("llama", tmp_path / "llm"), tiny_tower("siglip-vision", tmp_path / "tower")
    done = assemble(*sources, None, dtype="bfloat16", prove=False)
    (tmp_path / "text").mkdir()
    write_llm(done.model, done.processor, tmp_path / "text")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "text", dtype="auto")
    assert model.dtype == torch.bfloat16


def test_buffers_are_the_llms_too(tmp_path: Path) -> None:
    """Gemma 4 keeps a scale of each layer in one."""
    sources = tiny_llm("llama", tmp_path / "llm"), tiny_tower("siglip-vision", tmp_path / "tower")
    model = assemble(*sources, None, dtype="float32", prove=False).model
    model.get_decoder().layers[1].register_buffer("layer_scalar", torch.ones(1))
    assert "model.language_model.layers.1.layer_scalar" in llm_tensors(model)
