"""A sample of the decoder families that `make families` tries: each works or is refused with its own reason."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
import transformers as hf

from lockadapt.architectures.assemble import assemble
from lockadapt.architectures.blocks import block_linears, context_length
from lockadapt.tuning.adapters import LoraSettings, attach_lora, lora_config
from lockadapt.tuning.experts import experts_note
from lockadapt.tuning.quantize import check_types, load_quantized
from tests.benchmarks.conftest import FOLDER
from tests.support.tiny import GROUPED, tiny_llm, tiny_tokenizer

SAMPLE = {
    "granite": ("works", "saved"),
    "lfm2": ("works", "has conv layers"),
    "mixtral": ("works", "saved"),
    "gpt_oss": ("works", "saved"),
    "phimoe": ("works", "saved"),
    "xlnet": ("refused", "mems beside hidden states and a cache"),
    "openai-gpt": ("works", "cannot compute rows with a mask of their own"),
    "falcon": ("works", "saved"),
    "llama4_text": ("refused", "no part called language_model"),
    "mamba": ("refused", "lora.targets: ["),
    "minimax": ("refused", "a MiniMaxCache in place of the cache that their `generate` makes"),
    "granite_scaled": ("refused", "a logit scale"),
    "t5": ("refused", "an encoder beside its decoder"),
}


@pytest.mark.parametrize("family", SAMPLE)
def test_a_family_works_or_is_refused_with_its_reason(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    outcome = importlib.import_module("decoder_families").try_family(family, tmp_path, merge=False)
    result, words = SAMPLE[family]
    assert outcome.result == result, outcome
    assert words in (outcome.reason or outcome.packing), outcome


@pytest.fixture(scope="module")
def phimoe(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock folder around an LLM whose routers are linear layers with a forward of their own."""
    folder = tmp_path_factory.mktemp("phimoe")
    torch.manual_seed(0)
    config = hf.PhimoeConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2, lm_head_bias=False)
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(folder / "llm")
    tiny_tokenizer().save_pretrained(folder / "llm")
    assemble(folder / "llm", tiny / "clip-vision", folder / "vlm", dtype="float32", prove=False)
    return folder / "vlm"


def test_a_router_that_is_no_mere_product_is_neither_adapted_nor_quantized(phimoe: Path) -> None:
    model, _ = load_quantized(phimoe, "nf4", torch.float32)
    check_types(model, "nf4")
    assert {path.rsplit(".", 1)[-1] for path in block_linears(model)} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    }
    adapted = attach_lora(model, lora_config(model, LoraSettings(rank=4)))
    adapted(input_ids=torch.arange(4)[None])


def test_what_experts_are_left_out_of_is_said(phimoe: Path, tiny: Path, tmp_path: Path) -> None:
    model, _ = load_quantized(phimoe, "none", torch.float32)
    note = experts_note(model) or ""
    experts = sum(p.numel() for p in model.parameters() if p.ndim == 3)
    dense = sum(module.weight.numel() for module in block_linears(model).values())
    assert f"{experts / (experts + dense):.0%} of the weights" in note
    assert "only on k_proj, o_proj, q_proj, v_proj;" in note
    assert f"quantize {dense / (experts + dense):.0%}" in note
    quantized, _ = load_quantized(phimoe, "nf4", torch.float32)
    assert experts_note(quantized) == note
    tiny_llm("llama", tmp_path / "llm")
    plain = assemble(tmp_path / "llm", tiny / "clip-vision", None, dtype="float32", prove=False).model
    assert experts_note(plain) is None


@pytest.mark.parametrize("context", [-1, 0])
def test_a_context_of_no_tokens_means_an_unlimited_one(context: int, tiny: Path, tmp_path: Path) -> None:
    config = hf.LlamaConfig(**{**GROUPED, "max_position_embeddings": 256})
    hf.LlamaForCausalLM(config).save_pretrained(tmp_path / "llm")
    tiny_tokenizer().save_pretrained(tmp_path / "llm")
    text = (tmp_path / "llm/config.json").read_text()
    (tmp_path / "llm/config.json").write_text(
        text.replace('"max_position_embeddings": 256', f'"max_position_embeddings": {context}')
    )
    try:
        built = assemble(tmp_path / "llm", tiny / "clip-vision", None, dtype="float32", prove=False)
    except Exception as error:
        pytest.fail(f"{type(error).__name__}: {error}")
    assert built.report.llm_facts.context is None
    assert context_length(built.model) == 2048
