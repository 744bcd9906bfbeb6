"""Text models are measured: which pool themselves, which are causal, and which checkpoints lack something."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as hf

from lockadapt.errors import AssemblyError
from lockadapt.models.llms import load_llm, probe_llm
from lockadapt.models.texts import load_text, load_text_tokenizer, probe_text
from tests.support.texts import encoder
from tests.support.tiny import ROWS, tiny_llm, tiny_tokenizer, tiny_tower


@pytest.mark.parametrize(
    ("kind", "expected", "pooling"),
    [
        ("bert", "pooler", "pooler"),
        ("roberta", "pooler", "pooler"),
        ("clip-text", "pooler", "pooler"),
        ("masked-lm", "bidirectional", "mean"),
        ("distilbert", "bidirectional", "mean"),
        ("xlnet", "bidirectional", "mean"),
    ],
)
def test_encoders_are_measured(tmp_path: Path, kind: str, expected: str, pooling: str) -> None:
    loaded = load_text(encoder(kind, tmp_path / kind), torch.float32)
    facts = probe_text(loaded.model, "here")
    assert (facts.kind, facts.pooling(None), facts.hidden_size, facts.rows) == (expected, pooling, 32, ROWS)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_unlimited_positions_are_no_context(tmp_path: Path) -> None:
    loaded = load_text(encoder("xlnet", tmp_path / "xlnet"), torch.float32)
    assert loaded.model.config.max_position_embeddings == -1
    assert probe_text(loaded.model, "here").context is None


def test_xlnet_answers_about_no_images_and_the_reason_is_said(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = hf.XLNetConfig(vocab_size=ROWS, d_model=32, n_layer=2, n_head=4, d_inner=48)
    hf.XLNetLMHeadModel(config).save_pretrained(tmp_path / "xlnet")
    tiny_tokenizer().save_pretrained(tmp_path / "xlnet")
    with pytest.raises(AssemblyError, match="mems beside hidden states") as refusal:
        probe_llm(load_llm(tmp_path / "xlnet", torch.float32).model)
    assert "no Transformers class lets such an LLM answer about images" in str(refusal.value.fix)
    assert "dual encoder" in str(refusal.value.fix)


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "gpt2", "opt", "gpt-neox"])
def test_decoders_are_causal_and_come_without_their_head(tmp_path: Path, kind: str) -> None:
    loaded = load_text(tiny_llm(kind, tmp_path / kind), torch.float32)
    facts = probe_text(loaded.model, "here")
    assert facts.kind == "causal"
    assert facts.pooling(None) == "last"
    assert facts.pooling("mean") == "mean"
    assert loaded.model.get_output_embeddings() is None


def test_the_text_part_of_two_towers_is_taken(tmp_path: Path) -> None:
    tiny_tower("clip", tmp_path / "clip")
    whole = hf.CLIPModel.from_pretrained(tmp_path / "clip").eval()
    ids = torch.tensor([[3, 4, 5, 1]])
    loaded = load_text(tmp_path / "clip", torch.float32)
    expected = whole.text_model(input_ids=ids).pooler_output
    assert torch.equal(loaded.model(input_ids=ids).pooler_output, expected)


def test_a_table_that_is_stored_as_the_head_is_found(tmp_path: Path) -> None:
    """Some tied checkpoints hold only `lm_head.weight`, which the class without a head would not read."""
    from safetensors.torch import load_file, save_file

    folder = tiny_llm("llama-tied", tmp_path / "llm")
    tensors = load_file(folder / "model.safetensors")
    table = tensors.pop("model.embed_tokens.weight")
    save_file({**tensors, "lm_head.weight": table}, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = load_text(folder, torch.float32)
    assert torch.equal(loaded.model.get_input_embeddings().weight, table)


def test_what_cannot_embed_is_refused(tmp_path: Path) -> None:
    t5 = load_text(encoder("t5", tmp_path / "t5"), torch.float32)
    with pytest.raises(AssemblyError, match="T5Model cannot embed a text"):
        probe_text(t5.model, "here")
    with pytest.raises(AssemblyError, match="does not take texts"):
        load_text(tiny_tower("vit", tmp_path / "vit"), torch.float32)


def test_incomplete_checkpoints_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = encoder("distilbert", tmp_path / "text")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("transformer.layer.1.ffn.lin1.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AssemblyError, match=r"lacks transformer\.layer\.1\.ffn\.lin1\.weight"):
        load_text(folder, torch.float32)


def test_pooling_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    facts = probe_text(load_text(encoder("bert", tmp_path / "bert"), torch.float32).model, "here")
    with pytest.raises(AssemblyError, match="sees all others"):
        facts.pooling("last")
    facts = probe_text(load_text(tiny_llm("llama", tmp_path / "llama"), torch.float32).model, "here")
    with pytest.raises(AssemblyError, match="no pooled vector"):
        facts.pooling("pooler")


def test_the_tokenizer_pads_on_the_right(tmp_path: Path) -> None:
    folder = tiny_llm("llama", tmp_path / "llm")
    tokenizer = hf.AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.save_pretrained(folder)
    loaded = load_text_tokenizer(load_text(folder, torch.float32).source)
    loaded.save_pretrained(tmp_path / "again")
    again = hf.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert (loaded.padding_side, again.padding_side) == ("right", "right")
