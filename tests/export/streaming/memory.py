"""Makes a Llama of so many layers in a folder, merges an adapter into it, and prints the peak memory of doing so."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from lockadapt.export.streaming.merge_weights import Weighted, merge_weights
from lockadapt.export.streaming.names import meta_model
from tests.export.streaming.made import Case, adapted

HIDDEN = 1024


def main(room: Path, layers: int) -> None:
    """Tensors are made and written one layer at a time, so that making them is not the peak."""
    base, adapter, output = room / "base", room / "adapter", room / "output"
    for folder in (base, adapter, output):
        folder.mkdir(parents=True)
    config = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=HIDDEN, num_hidden_layers=layers, num_attention_heads=8,
        num_key_value_heads=8, vocab_size=64, tie_word_embeddings=True, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(base)
    shapes = {
        name: tensor.shape
        for name, tensor in meta_model(base).state_dict().items()
        if name != "lm_head.weight"
    }
    weight_map: dict[str, str] = {}
    lora: dict[str, torch.Tensor] = {}
    case = Case(targets=("q_proj", "k_proj", "v_proj", "o_proj", "up_proj"))
    for number in range(layers):
        names = [
            name for name in shapes if f"layers.{number}." in name or (".layers." not in name and number == 0)
        ]
        tensors = {name: torch.randn(shapes[name]).bfloat16() for name in names}
        save_file(tensors, base / f"{number}.safetensors", metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, f"{number}.safetensors")
        for path in adapted(case, tensors):
            lora[f"base_model.model.{path}.lora_A.weight"] = torch.randn(2, HIDDEN)
            lora[f"base_model.model.{path}.lora_B.weight"] = torch.randn(HIDDEN, 2)
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    save_file(lora, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": list(case.targets)}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    report = merge_weights(base, output, [Weighted(adapter)])
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024
    print(json.dumps({"peak_mib": peak, "bytes": report.bytes}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
