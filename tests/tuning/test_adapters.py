"""LoRA lands on full module paths of the LLM's blocks, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from lockadapt.architectures.assemble import Assembled, assemble
from lockadapt.architectures.blocks import block_linears
from lockadapt.architectures.load import load_model
from lockadapt.errors import AdapterError, AssemblyError
from lockadapt.tuning.adapters import (
    LoraSettings,
    adapted_paths,
    attach_lora,
    lora_config,
    resolve_targets,
    set_trainable,
)
from tests.support.tiny import LLMS, tiny_llm
from tests.support.zoo import entry_of


@pytest.mark.parametrize("kind", sorted(set(LLMS) - {"bloom"}))
def test_all_families(kind: str, tiny: Path, tmp_path: Path) -> None:
    model = assemble(
        tiny_llm(kind, tmp_path / "llm"), tiny / "clip-vision", None, dtype="float32", prove=False
    ).model
    everything, attention = resolve_targets(model, "all-linear")[0], resolve_targets(model, "attention")[0]
    assert everything == list(block_linears(model))
    assert all(path.startswith("model.language_model.") for path in everything)
    assert 0 < len(attention) < len(everything)
    assert set(attention) < set(everything)
    wrapped = attach_lora(model, lora_config(model, LoraSettings(rank=2, targets="attention")))
    assert sorted(adapted_paths(wrapped)) == sorted(attention)


def test_attention_must_be_marked(tiny: Path, tmp_path: Path) -> None:
    """Transformers does not say which modules of Bloom are attention."""
    llm = tiny_llm("bloom", tmp_path / "llm")
    model = assemble(llm, tiny / "clip-vision", None, dtype="float32", prove=False).model
    assert len(resolve_targets(model, "all-linear")[0]) == 8
    with pytest.raises(AssemblyError, match="which of its modules are attention"):
        resolve_targets(model, "attention")[0]


def test_names_tails_and_paths(assembled: Assembled) -> None:
    model, _ = load_model(assembled.folder, "float32")
    assert len(resolve_targets(model, ["q_proj"])[0]) == 2
    assert resolve_targets(model, ["self_attn.q_proj"])[0] == resolve_targets(model, ["q_proj"])[0]
    full = "model.language_model.layers.1.mlp.up_proj"
    assert resolve_targets(model, [full, full])[0] == [full]


def test_unmatched_name_is_an_error_with_a_hint(assembled: Assembled) -> None:
    model, _ = load_model(assembled.folder, "float32")
    with pytest.raises(AdapterError, match="'q_porj' matches no linear layer") as error:
        resolve_targets(model, ["q_porj"])[0]
    assert "did you mean 'q_proj'" in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("target", ["lm_head", "linear_1", "model.multi_modal_projector.linear_2"])
def test_target_outside_the_llm_is_an_error(target: str, assembled: Assembled) -> None:
    model, _ = load_model(assembled.folder, "float32")
    with pytest.raises(AdapterError, match="outside the LLM's blocks"):
        resolve_targets(model, [target])[0]


def test_peft_config_that_would_reach_the_tower_is_refused(assembled: Assembled) -> None:
    model, _ = load_model(assembled.folder, "float32")
    with pytest.raises(AdapterError, match="outside the LLM's blocks"):
        attach_lora(model, LoraConfig(r=2, target_modules="all-linear"))


def test_modules_to_save_is_refused(assembled: Assembled) -> None:
    model, _ = load_model(assembled.folder, "float32")
    with pytest.raises(AdapterError, match="modules_to_save"):
        attach_lora(
            model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["multi_modal_projector"])
        )


@pytest.mark.parametrize(
    ("settings", "attribute", "value"),
    [
        (LoraSettings(rank=3), "r", 3),
        (LoraSettings(rank=3), "lora_alpha", 6),
        (LoraSettings(alpha=5.0), "lora_alpha", 5.0),
        (LoraSettings(dropout=0.1), "lora_dropout", 0.1),
        (LoraSettings(rslora=True), "use_rslora", True),
        (LoraSettings(dora=True), "use_dora", True),
        (LoraSettings(init="orthogonal"), "init_lora_weights", "orthogonal"),
        (LoraSettings(init="default"), "init_lora_weights", True),
    ],
)
def test_every_setting_reaches_peft(
    settings: LoraSettings, attribute: str, value: object, assembled: Assembled
) -> None:
    model, _ = load_model(assembled.folder, "float32")
    assert getattr(lora_config(model, settings), attribute) == value


def test_only_the_asked_parts_train(assembled: Assembled) -> None:
    model, _ = load_model(assembled.folder, "float32")
    with pytest.raises(AdapterError, match="nothing of lora"):
        set_trainable(model, ["lora"])
    assert all("multi_modal_projector" in name for name in set_trainable(model, ["projector"]))
    wrapped = attach_lora(model, lora_config(model, LoraSettings(rank=2)))
    assert all(".lora_" in name for name in set_trainable(wrapped, ["lora"]))


def test_linear_fusion_trains_one_layer(tiny: Path) -> None:
    model = assemble(
        tiny / "llama", tiny / "mobilenet-v2", None, fusion_name="linear", dtype="float32", prove=False
    ).model
    names = set_trainable(model, ["projector"])
    assert names == [
        "model.multi_modal_projector.linear_1.weight",
        "model.multi_modal_projector.linear_1.bias",
    ]


@pytest.mark.parametrize(
    ("name", "left_out", "kept"),
    [
        ("gemma3n", ("altup.correction_coefs", "altup.prediction_coefs"), "altup.modality_router"),
        ("glm4v_moe", ("mlp.down_proj", "shared_experts.up_proj"), "self_attn.q_proj"),
    ],
)
def test_layers_whose_adapter_would_do_nothing_are_no_targets(
    name: str, left_out: tuple[str, ...], kept: str
) -> None:
    """Layers whose owner multiplies with their weight itself, and those that PEFT takes for fused experts."""
    entry = entry_of(name)
    if missing := entry.missing():
        pytest.skip(f"its processor needs {' and '.join(missing)}")
    model, _ = entry.build()
    linears = {path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    targets = resolve_targets(model, "all-linear")[0]
    for tail in left_out:
        assert any(path.endswith(tail) for path in linears)
        assert not any(path.endswith(tail) for path in targets)
    assert any(path.endswith(kept) for path in targets)
