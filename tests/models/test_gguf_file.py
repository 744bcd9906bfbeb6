"""A GGUF file as an LLM: the weights that Transformers dequantizes, in an ordinary folder that is made once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lockadapt.architectures.assemble import assemble
from lockadapt.errors import SetupError
from lockadapt.models import gguf_file
from lockadapt.models.llms import load_llm
from lockadapt.models.quiet import quiet
from lockadapt.models.sources import find
from tests.support.gguf_llm import CHAT, gguf_llm

pytest.importorskip("gguf", reason="the package gguf is not installed (extra `gguf`)")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gguf_file, "GGUF_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def test_the_llm_of_a_file(cache: Path, tiny: Path, tmp_path: Path) -> None:
    file = gguf_llm(tmp_path / "llm.gguf")
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
    cut.write_bytes(gguf_llm(tmp_path / "llm.gguf").read_bytes()[:300])
    with pytest.raises(SetupError, match="cannot be loaded"):
        find(cut, "LLM")
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(SetupError, match="is a file"):
        find(tmp_path / "text.gguf", "LLM")
    with pytest.raises(SetupError, match="the tower is a file"):
        find(tmp_path / "llm.gguf", "tower")
    assert not list(cache.glob("*"))
