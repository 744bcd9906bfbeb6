"""Bases and adapters made from numbers alone, and what merging them must give, computed the plain way in float64."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config, LlamaConfig, PretrainedConfig

from lockadapt.exports.weights import merge_weights
from lockadapt.exports.weights.merge_weights import Weighted
from lockadapt.exports.weights.names import meta_model
from lockadapt.exports.weights.requantized import QuantizationRoundTrip
from lockadapt.tuning.quantize import dequantized_weight

PREFIX = "base_model.model."
EMBEDDING = {"llama": "model.embed_tokens", "gpt2": "transformer.wte"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Case:
    """A base and an adapter."""

    kind: str = "llama"
    dtype: str = "float32"
    adapter_dtype: str = "float32"
    tied: bool = True
    shards: int = 1
    rank: int = 2
    alpha: float = 3.0
    rslora: bool = False
    dora: bool = False
    targets: tuple[str, ...] = ("q_proj", "down_proj")
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    tokens: tuple[int, ...] = ()
    saved: tuple[str, ...] = ()
    weight: float = 1.0
    seed: int = 0
    hidden: int = 8

    @property
    def config(self) -> PretrainedConfig:
        if self.kind == "gpt2":
            return GPT2Config(
                n_embd=self.hidden, n_layer=2, n_head=2, vocab_size=24, n_positions=16,
                tie_word_embeddings=self.tied, architectures=["GPT2LMHeadModel"],
            )  # fmt: skip
        return LlamaConfig(
            hidden_size=self.hidden, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, vocab_size=24, tie_word_embeddings=self.tied, architectures=["LlamaForCausalLM"],
        )  # fmt: skip


def make_base(case: Case, folder: Path) -> dict[str, Tensor]:
    """Writes config and shards; returns the tensors."""
    folder.mkdir(parents=True)
    case.config.save_pretrained(folder)
    chance = torch.Generator().manual_seed(case.seed)
    model = meta_model(folder)
    ties = set(model.all_tied_weights_keys or ()) if case.tied else set()
    tensors = {
        name: torch.randn(tensor.shape, generator=chance).to(DTYPES[case.dtype])
        for name, tensor in model.state_dict().items()
        if name not in ties
    }
    write_shards(tensors, folder, case.shards)
    return tensors


def write_shards(tensors: Mapping[str, Tensor], folder: Path, shards: int) -> None:
    names = list(tensors)
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt", "made": "by hand"})
        return
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = names[number::shards]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def read_all(folder: Path) -> dict[str, Tensor]:
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def adapted(case: Case, base: Mapping[str, Tensor]) -> list[str]:
    """Paths of the matrices that get a low-rank sum."""
    return [
        name.removesuffix(".weight")
        for name, tensor in base.items()
        if tensor.ndim == 2 and name.removesuffix(".weight").rpartition(".")[2] in case.targets
    ]


def make_adapter(case: Case, base: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Writes a folder as PEFT does, without PEFT; returns its tensors."""
    folder.mkdir(parents=True)
    chance = torch.Generator().manual_seed(case.seed + 1)

    def random(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=chance) * 0.3).to(DTYPES[case.adapter_dtype])

    tensors: dict[str, Tensor] = {}
    conv = case.kind == "gpt2"
    for path in adapted(case, base):
        rows, columns = base[f"{path}.weight"].shape
        inputs, outputs = (rows, columns) if conv else (columns, rows)
        rank = case.rank_pattern.get(path.rpartition(".")[2], case.rank)
        tensors[f"{path}.lora_A.weight"] = random(rank, inputs)
        tensors[f"{path}.lora_B.weight"] = random(outputs, rank)
        if case.dora:
            tensors[f"{path}.lora_magnitude_vector"] = random(outputs).abs() + 0.5
    if case.tokens:
        tensors[f"{EMBEDDING[case.kind]}.token_adapter.trainable_tokens_delta"] = random(
            len(case.tokens), case.hidden
        )
    for path in case.saved:
        for name, tensor in base.items():
            if name.startswith(f"{path}."):
                tensors[name] = random(*tensor.shape)
    save_file(
        {PREFIX + name: tensor for name, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": case.rank,
        "lora_alpha": case.alpha,
        "use_rslora": case.rslora,
        "use_dora": case.dora,
        "target_modules": list(case.targets),
        "rank_pattern": dict(case.rank_pattern),
        "alpha_pattern": dict(case.alpha_pattern),
        "fan_in_fan_out": conv,
        "modules_to_save": list(case.saved) or None,
        "trainable_token_indices": list(case.tokens) or None,
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return tensors


def oracle(case: Case, base: Mapping[str, Tensor], adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float64, from the papers' formulas; nothing of the code under test."""
    merged = {name: tensor.double() for name, tensor in base.items()}
    conv = case.kind == "gpt2"
    for path in adapted(case, base):
        leaf = path.rpartition(".")[2]
        rank = case.rank_pattern.get(leaf, case.rank)
        alpha = case.alpha_pattern.get(leaf, case.alpha)
        scale = case.weight * alpha / (rank**0.5 if case.rslora else rank)
        a, b = (adapter[f"{path}.lora_{x}.weight"].double() for x in "AB")
        weight = merged[f"{path}.weight"].T if conv else merged[f"{path}.weight"]
        total = weight + scale * (b @ a)
        if case.dora:
            magnitude = adapter[f"{path}.lora_magnitude_vector"].double()
            total = magnitude[:, None] * total / (total**2).sum(1, keepdim=True).sqrt()
        merged[f"{path}.weight"] = total.T if conv else total
    name = f"{EMBEDDING[case.kind]}.weight"
    if case.tokens:
        rows = adapter[f"{EMBEDDING[case.kind]}.token_adapter.trainable_tokens_delta"].double()
        for row, values in zip(case.tokens, rows, strict=True):
            merged[name][row] += case.weight * (values - merged[name][row])
    for path in case.saved:
        for name in base:
            if name.startswith(f"{path}."):
                merged[name] += case.weight * (adapter[name].double() - merged[name])
    return merged


def merged_and_wanted(
    kind: Any, folder: Path, device: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A matrix merged on a quantized base; what bitsandbytes' layer on `device` gives; what the base before gives."""
    import bitsandbytes as bnb

    case = Case(dtype="bfloat16", hidden=96, targets=("q_proj",))
    base, adapter, output = make(case, folder)
    name = "model.layers.0.self_attn.q_proj"
    merge_weights(
        base,
        output,
        [Weighted(adapter)],
        requantized={f"{name}.weight": QuantizationRoundTrip(kind, torch.bfloat16, device == "cpu")},
    )
    stored, lora = read_all(base)[f"{name}.weight"], plain_tensors(adapter)
    layer = torch.nn.Module()
    if kind == "nf4":
        layer.weight = bnb.nn.Params4bit(
            stored, requires_grad=False, quant_type="nf4", compress_statistics=True
        ).to(device)
    else:
        layer.weight = bnb.nn.Int8Params(stored.half(), requires_grad=False).to(device)
    a, b = (lora[f"{name}.lora_{x}.weight"] for x in "AB")
    sums = case.alpha / case.rank * (b @ a)
    wanted = (dequantized_weight(layer, torch.float32).cpu() + sums).bfloat16()
    return read_all(output)[f"{name}.weight"], wanted, (stored.float() + sums).bfloat16()


def make(case: Case, scratch: Path) -> tuple[Path, Path, Path]:
    """Base, adapter and an empty folder."""
    base, adapter, output = scratch / "base", scratch / "adapter", scratch / "output"
    for folder in (base, adapter, output):
        shutil.rmtree(folder, ignore_errors=True)
    make_adapter(case, make_base(case, base), adapter)
    output.mkdir()
    return base, adapter, output


def plain_tensors(adapter: Path) -> dict[str, torch.Tensor]:
    return {name.removeprefix("base_model.model."): tensor for name, tensor in read_all(adapter).items()}
