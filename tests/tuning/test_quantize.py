"""4 and 8 bits on the LLM's blocks and nowhere else; training in NF4 runs on the CPU; dequantizing is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from lockadapt.architectures import layout_of
from lockadapt.architectures.assemble import assemble
from lockadapt.architectures.base import component_of
from lockadapt.architectures.blocks import block_linears
from lockadapt.architectures.load import load_model
from lockadapt.console import Reporter
from lockadapt.errors import VerificationError
from lockadapt.exports.merge import merge_run
from lockadapt.planning.quantize_meta import quantize_meta
from lockadapt.recipe.read import load_recipe
from lockadapt.training.loop import train
from lockadapt.tuning.adapters import LoraSettings, attach_lora, lora_config, set_trainable
from lockadapt.tuning.locks import component_table, frozen_digests, prove_locked
from lockadapt.tuning.quantize import check_types, dequantize, is_quantized, load_quantized
from tests.support.runs import values
from tests.support.tiny import tiny_llm

IDS = torch.tensor([[5, 9, 33, 60, 7]])


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("quantized") / "base"
    assemble(tiny / "llama", tiny / "clip-vision", output, dtype="float32", prove=False)
    return output


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_blocks_only(kind: str, folder: Path) -> None:
    model, _ = load_quantized(folder, kind, torch.float32)
    quantized = {name for name, module in model.named_modules() if is_quantized(module)}
    assert quantized == set(block_linears(model))
    assert len(quantized) == 14
    for name, parameter in model.named_parameters():
        if component_of(name, layout_of(model)) in ("tower", "projector", "head"):
            assert parameter.dtype == torch.float32, name
    rows = {row.component: row for row in component_table(model)}
    assert rows["llm"].dtype.split("+")[-1] in (kind, "float32")
    assert kind in rows["llm"].dtype


def test_int8_does_not_talk_at_every_product(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, _ = load_quantized(folder, "int8", torch.bfloat16)
    with torch.no_grad():
        model(input_ids=IDS)
    assert "inputs will be cast" not in caplog.text


def test_true_parameter_count_survives_packing(folder: Path) -> None:
    plain, _ = load_quantized(folder, "none", torch.float32)
    packed, _ = load_quantized(folder, "nf4", torch.float32)
    counts = [sum(row.parameters for row in component_table(model)) for model in (plain, packed)]
    assert counts[0] == counts[1]


def test_a_quantized_tower_is_found(folder: Path) -> None:
    model, _ = load_quantized(folder, "nf4", torch.float32)
    donor = next(module for module in model.modules() if is_quantized(module))
    model.model.multi_modal_projector.linear_1 = donor
    with pytest.raises(VerificationError, match=r"multi_modal_projector\.linear_1 is Linear4bit"):
        check_types(model, "nf4")


def test_a_block_left_out_is_found(folder: Path) -> None:
    model, _ = load_quantized(folder, "nf4", torch.float32)
    model.model.language_model.layers[0].mlp.up_proj = nn.Linear(32, 48)
    with pytest.raises(VerificationError, match=r"up_proj is Linear"):
        check_types(model, "nf4")


@pytest.mark.parametrize(("kind", "tolerance"), [("nf4", 1e-5), ("int8", 0.1)])
def test_dequantized_model_computes_the_same(kind: str, tolerance: float, folder: Path) -> None:
    model, _ = load_quantized(folder, kind, torch.float32)
    with torch.no_grad():
        before = model(input_ids=IDS).logits.float()
        after = dequantize(model)(input_ids=IDS).logits
    assert not any(is_quantized(module) for module in model.modules())
    torch.testing.assert_close(before, after, rtol=0, atol=tolerance)
    original, _ = load_quantized(folder, "none", torch.float32)
    assert (original(input_ids=IDS).logits - after).abs().max() > 1e-4


def test_evaluating_moves_no_quantized_tensor(folder: Path) -> None:
    """bitsandbytes would repack them on some CPUs, which the lock proof would rightly report."""
    model, _ = load_quantized(folder, "nf4", torch.float32)
    before = frozen_digests(model)
    with torch.no_grad():
        trained = model.train()(input_ids=IDS).logits
        evaluated = model.eval()(input_ids=IDS).logits
    assert prove_locked(model, before) == len(before)
    torch.testing.assert_close(trained, evaluated, rtol=0, atol=0)


def test_an_adapter_on_the_dequantized_base_merges_exactly(folder: Path) -> None:
    model, _ = load_quantized(folder, "nf4", torch.float32)
    trained = attach_lora(model, lora_config(model, LoraSettings(rank=2, init="gaussian")))
    for name, parameter in trained.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.1)
    adapter = get_peft_model_state_dict(trained)
    with torch.no_grad():
        before = trained(input_ids=IDS).logits
    again, _ = load_quantized(folder, "nf4", torch.float32)
    plain = attach_lora(dequantize(again), lora_config(again, LoraSettings(rank=2)))
    set_peft_model_state_dict(plain, adapter)
    with torch.no_grad():
        after = plain(input_ids=IDS).logits
        merged = plain.merge_and_unload()(input_ids=IDS).logits
    torch.testing.assert_close(before, after, rtol=0, atol=1e-5)
    torch.testing.assert_close(after, merged, rtol=0, atol=1e-5)


def test_nf4_gradients_reach_projector_and_lora(folder: Path) -> None:
    model, processor = load_quantized(folder, "nf4", torch.float32)
    model = attach_lora(model, lora_config(model, LoraSettings(rank=2)))
    trained = set_trainable(model, ["projector", "lora"])
    ids = torch.tensor([[processor.image_token_id] * 16 + [5, 6, 7]])
    model(input_ids=ids, pixel_values=torch.randn(1, 3, 32, 32), labels=ids.clone()).loss.backward()
    grads = {n: p.grad for n, p in model.get_base_model().named_parameters() if p.requires_grad}
    assert set(grads) == set(trained)
    assert all(g is not None for g in grads.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fusion", "quantization"), [("mlp", "nf4"), ("mlp", "int8"), ("cross-attention", "nf4")]
)
def test_gpt2s_blocks_are_quantized_as_planned_trained_and_merged(
    quantization: Any, fusion: str, tiny: Path, tmp_path: Path
) -> None:
    """They are Conv1D, (in, out), and quantized as (out, in); so would be those of its cross-attention."""
    recipe = values(tiny, tmp_path)
    llm = tiny_llm("gpt2", tmp_path / "llm")
    recipe["model"] |= {"llm": str(llm), "fusion": fusion, "quantization": quantization}
    run, quiet = tmp_path / "run", Reporter(quiet=True)
    train(load_recipe(None, (), recipe).recipe, run, quiet)
    assert merge_run(run, tmp_path / "merged", quiet)["max_abs_logit_diff"] < 1e-5
    model, _ = load_quantized(run / "base", quantization, torch.float32)
    inside = {name for name, module in model.named_modules() if is_quantized(module)}
    assert inside == set(block_linears(model))
    planned, _ = load_model(run / "base", torch.float32, meta=True)
    quantize_meta(planned, quantization, torch.float32)
    for name in inside:
        made, loaded = planned.get_submodule(name), model.get_submodule(name)
        assert type(made) is type(loaded)
        assert (made.in_features, made.out_features) == (loaded.in_features, loaded.out_features)
