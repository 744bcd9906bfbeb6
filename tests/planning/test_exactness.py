"""Packing is refused where tokens of one sample reach another, however little and in whatever dtype, and only there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from lockadapt.architectures import llm_of
from lockadapt.architectures.assemble import assemble
from lockadapt.data.batch import Batch, collate
from lockadapt.data.encode import Encoded, Encoder
from lockadapt.data.pixels import PixelInputs
from lockadapt.planning.exactness import LEAK, in_float32, try_packing
from lockadapt.planning.packing import to_be_tried, why_not_exact
from lockadapt.tuning.quantize import load_quantized
from tests.support.rows import vqa_samples
from tests.support.tiny import GROUPED, tiny_tokenizer, tiny_tower

MOE = {"num_experts_per_tok": 2}
MAMBA = {"mamba_d_state": 16, "mamba_n_heads": 4, "mamba_n_groups": 1}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
FOUR = {**GROUPED, "num_hidden_layers": 4, "head_dim": 8}
CONFIGS: dict[str, Any] = {
    "lfm2": lambda: hf.Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"], block_multiple_of=8),
    "jamba": lambda: hf.JambaConfig(
        **GROUPED, **MOE, attn_layer_period=2, attn_layer_offset=1, num_experts=2, mamba_d_state=8, use_mamba_kernels=False
    ),
    "bamba": lambda: hf.BambaConfig(**GROUPED, **MAMBA, attn_layer_indices=[1], mamba_d_head=16),
    "falcon_h1": lambda: hf.FalconH1Config(**GROUPED, **MAMBA, mamba_d_ssm=64, mamba_d_head=16),
    "granitemoehybrid": lambda: hf.GraniteMoeHybridConfig(
        **GROUPED, **MAMBA, layer_types=["mamba", "attention"], mamba_d_head=16, num_local_experts=0,
        num_experts_per_tok=0, shared_intermediate_size=64,
    ),
    "qwen3_5_text": lambda: hf.Qwen3_5TextConfig(**FOUR, **LINEAR),
    "gpt_neo": lambda: hf.GPTNeoConfig(
        vocab_size=300, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
        max_position_embeddings=256,
    ),
    "llama": lambda: hf.LlamaConfig(**GROUPED),
    "gpt_oss": lambda: hf.GptOssConfig(
        **GROUPED, **MOE, head_dim=8, num_local_experts=4, sliding_window=64,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "mixtral": lambda: hf.MixtralConfig(**GROUPED, **MOE, num_local_experts=4),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(**GROUPED, **MOE, moe_intermediate_size=32, num_experts=4),
}  # fmt: skip
HYBRID = ["lfm2", "jamba", "bamba", "falcon_h1", "granitemoehybrid", "qwen3_5_text", "gpt_neo"]
PLAIN = ["llama", "gpt_oss", "mixtral", "qwen3_moe"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stock folders by LLM family, assembled when they are asked for the first time."""
    root = tmp_path_factory.mktemp("kinds")
    tiny_tower("clip-vision", root / "tower")
    return {"": root}


def loaded(folders: dict[str, Path], family: str, dtype: torch.dtype, quantization: Any = "none") -> Any:
    """Model and processor of a family."""
    root = folders[""]
    if family not in folders:
        torch.manual_seed(0)
        hf.AutoModelForCausalLM.from_config(CONFIGS[family]()).save_pretrained(root / family)
        tiny_tokenizer().save_pretrained(root / family)
        folders[family] = root / f"{family}-vlm"
        assemble(root / family, root / "tower", folders[family], dtype="float32", prove=False)
    return load_quantized(folders[family], quantization, dtype)


def trial(model: nn.Module, processor: Any, folder: Path) -> Any:
    """What packing a few rows shows, with the weights checked to be as before."""
    items = Encoder(processor, 200).encode(vqa_samples(folder, repeat=2)).encoded
    images = PixelInputs(processor.image_processor, 10**6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def batch(some: Sequence[Encoded], limit: int | None) -> Batch:
        return collate(some, images, 2, "vqa", limit)

    measured = try_packing(model, to_be_tried({"vqa": items}), batch, 2048)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name]), name
    return measured


@pytest.mark.parametrize("family", HYBRID)
def test_layers_beside_attention_are_refused_by_structure(family: str, folders: dict[str, Path]) -> None:
    model, _ = loaded(folders, family, torch.float32)
    assert "which mix a token with whatever stands before it" in (why_not_exact(model, 10) or "")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["lfm2", "falcon_h1", "qwen3_5_text"])
def test_the_trial_alone_sees_them_in_any_dtype(
    family: str, dtype: torch.dtype, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Small random weights and 16 bits: their losses differ by less than rounding would explain."""
    measured = trial(*loaded(folders, family, dtype), tmp_path)
    assert measured.leak > LEAK
    assert "mixed" in measured.problem


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", PLAIN)
def test_plain_attention_is_exact_in_any_dtype(
    family: str, dtype: torch.dtype, folders: dict[str, Path], tmp_path: Path
) -> None:
    model, processor = loaded(folders, family, dtype)
    assert why_not_exact(model, 60) is None
    measured = trial(model, processor, tmp_path)
    assert measured.problem is None, measured
    assert measured.wrong_positions > 100 * measured.difference


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantized_layers_are_tried_as_what_they_stand_for(
    quantization: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    measured = trial(*loaded(folders, "llama", torch.bfloat16, quantization), tmp_path)
    assert measured.leak == 0.0
    assert measured.problem is None


def test_a_leak_far_below_the_dtype_of_the_run_is_seen(folders: dict[str, Path], tmp_path: Path) -> None:
    """A thousandth of the token before it is added to every token: nothing that a loss in bfloat16 would show."""
    model, processor = loaded(folders, "llama", torch.bfloat16)
    llm_of(model).layers[0].register_forward_hook(lambda _, __, out: out + 1e-3 * out.roll(1, dims=1))
    assert "mixed" in trial(model, processor, tmp_path).problem


def test_positions_that_are_ignored_are_seen(folders: dict[str, Path], tmp_path: Path) -> None:
    """Nothing leaks, but a branch behind another is computed as if it stood further from its prefix."""
    model, processor = loaded(folders, "llama", torch.bfloat16)
    llm_of(model).rotary_emb.register_forward_pre_hook(
        lambda _, args, kwargs: (
            args,
            {**kwargs, "position_ids": torch.arange(kwargs["position_ids"].shape[1])[None]},
        ),
        with_kwargs=True,
    )
    measured = trial(model, processor, tmp_path)
    assert measured.leak == 0.0
    assert "packed and alone" in measured.problem


def test_blocks_compute_in_float32_and_come_back(folders: dict[str, Path]) -> None:
    model, _ = loaded(folders, "llama", torch.bfloat16)
    llm, seen = llm_of(model), []
    llm.layers[1].self_attn.register_forward_hook(
        lambda module, _, __: seen.append(
            (module.q_proj.weight.dtype, llm.layers[0].mlp.up_proj.weight.dtype)
        )
    )
    with torch.no_grad(), in_float32(model):
        out = llm(inputs_embeds=torch.randn(1, 4, 32)).last_hidden_state
    assert out.dtype == torch.float32
    assert seen == [(torch.float32, torch.bfloat16)], "one block at a time"
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
