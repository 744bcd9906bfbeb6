"""Merging beside copying: lockadapt's stream, PEFT, a dictionary per shard and `cp`, interleaved.

    python benchmarks/merge.py                      # a table; 1.3 GB in bfloat16, rank 16 everywhere
    python benchmarks/merge.py --layers 108 --rounds 2 --only lockadapt      # 10 GB
    python benchmarks/merge.py --json --details build/merge.json

Every round runs in a process of its own. Time starts when libraries are imported and ends when the result is
on the disk. Memory is the process's peak over what it holds after `import torch`. The disk's own speed is
what `cp` shows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

METHODS = ("lockadapt", "peft", "shard_dict")
TIME_LIMIT, RSS_LIMIT = 2.5, 512
HIDDEN, INNER, KEYS, VOCABULARY, LAYERS, RANK = 2048, 5632, 512, 32000, 12, 16


def make_base(folder: Path, layers: int, shards: int) -> None:
    """A Llama with random weights in bfloat16, written shard by shard; head and embeddings are not tied."""
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    folder.mkdir()
    config.save_pretrained(folder)
    linears = {
        **{"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KEYS, HIDDEN)},
        **{"self_attn.v_proj": (KEYS, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN)},
        **{
            "mlp.gate_proj": (INNER, HIDDEN),
            "mlp.up_proj": (INNER, HIDDEN),
            "mlp.down_proj": (HIDDEN, INNER),
        },
    }
    torch.manual_seed(0)
    weight_map: dict[str, str] = {}
    size = 0
    for shard in range(shards):
        tensors: dict[str, torch.Tensor] = {}
        for layer in range(layers * shard // shards, layers * (shard + 1) // shards):
            start = f"model.layers.{layer}"
            for name, shape in linears.items():
                tensors[f"{start}.{name}.weight"] = (torch.randn(shape) * 0.02).bfloat16()
            for name in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{start}.{name}.weight"] = torch.ones(HIDDEN).bfloat16()
        if shard == 0:
            tensors["model.embed_tokens.weight"] = (torch.randn(VOCABULARY, HIDDEN) * 0.02).bfloat16()
        if shard == shards - 1:
            tensors["model.norm.weight"] = torch.ones(HIDDEN).bfloat16()
            tensors["lm_head.weight"] = (torch.randn(VOCABULARY, HIDDEN) * 0.02).bfloat16()
        name = "model.safetensors" if shards == 1 else f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if shards > 1:
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def make_adapter(base: Path, folder: Path) -> None:
    """A PEFT folder with random matrices on every linear layer of the blocks."""
    from peft import LoraConfig, get_peft_model

    from lockadapt.exports.weights.names import meta_model

    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = get_peft_model(meta_model(base), config)
    torch.manual_seed(1)
    for name, module in list(model.named_modules()):
        for parameter, tensor in list(module.named_parameters(recurse=False)):
            if "lora_" in name:
                value = torch.nn.Parameter(torch.randn(tensor.shape) * 0.01)
                setattr(module, parameter, value)
    model.save_pretrained(folder, state_dict={k: v for k, v in model.state_dict().items() if "lora_" in k})


def work(method: str, base: Path, adapter: Path, output: Path) -> dict[str, float]:
    """One merge in this process."""
    before = _peak()
    merge = {"lockadapt": _lockadapt, "peft": _peft, "shard_dict": _shard_dict}[method]
    start = merge(base, adapter, output)
    sync_folder(output)
    return {"seconds": time.perf_counter() - start, "rss_excess_mib": _peak() - before}


def _lockadapt(base: Path, adapter: Path, output: Path) -> float:
    import peft  # noqa: F401 - the start is after all imports
    import transformers.modeling_utils
    import transformers.models.llama.modeling_llama  # noqa: F401

    from lockadapt.exports.weights.merge_weights import Weighted, merge_weights

    start = time.perf_counter()
    output.mkdir()
    merge_weights(base, output, [Weighted(adapter)])
    return start


def _peft(base: Path, adapter: Path, output: Path) -> float:
    import transformers.models.llama.modeling_llama  # noqa: F401
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    start = time.perf_counter()
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().save_pretrained(output)
    return start


def _shard_dict(base: Path, adapter: Path, output: Path) -> float:
    from safetensors.torch import load_file, save_file

    start = time.perf_counter()
    output.mkdir()
    lora, scale = load_file(adapter / "adapter_model.safetensors"), _scale(adapter)
    for shard in sorted(base.glob("*.safetensors")):
        merged = {}
        for key, tensor in load_file(shard).items():
            a, b = _pair(lora, key)
            merged[key] = tensor if a is None else reference(tensor, a, b, scale)
        save_file(merged, output / shard.name, metadata={"format": "pt"})
    return start


def reference(weight: torch.Tensor, a: Any, b: Any, scale: float) -> torch.Tensor:
    """The plain way: everything in float32, rounded once."""
    return (weight.float() + scale * (b.float() @ a.float())).to(weight.dtype)


def _pair(lora: dict[str, torch.Tensor], key: str) -> tuple[Any, Any]:
    start = f"base_model.model.{key.removesuffix('.weight')}"
    return lora.get(f"{start}.lora_A.weight"), lora.get(f"{start}.lora_B.weight")


def _scale(adapter: Path) -> float:
    config = json.loads((adapter / "adapter_config.json").read_text())
    return config["lora_alpha"] / config["r"]


def identical(base: Path, adapter: Path, output: Path) -> bool:
    """Whether a merged folder holds, bit for bit, what the plain way computes."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    lora, scale = load_file(adapter / "adapter_model.safetensors"), _scale(adapter)
    for shard in sorted(base.glob("*.safetensors")):
        with safe_open(shard, "pt") as old, safe_open(output / shard.name, "pt") as new:
            if list(old.keys()) != list(new.keys()):
                return False
            for key in list(old.keys()):
                a, b = _pair(lora, key)
                weight, merged = old.get_tensor(key), new.get_tensor(key)
                wanted = weight if a is None else reference(weight, a, b, scale)
                if not torch.equal(wanted.view(torch.int16), merged.view(torch.int16)):
                    return False
    return True


def sync_folder(folder: Path) -> None:
    """Waits until every file is on the disk."""
    for file in folder.iterdir():
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())


def copy(base: Path, output: Path) -> float:
    """Seconds of `cp`, until its files are on the disk."""
    start = time.perf_counter()
    subprocess.run(["cp", "-r", "--reflink=never", str(base), str(output)], check=True)
    sync_folder(output)
    return time.perf_counter() - start


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All methods, in turns."""
    base, adapter, output = scratch / "base", scratch / "adapter", scratch / "output"
    make_base(base, arguments.layers, arguments.shards)
    make_adapter(base, adapter)
    sync_folder(base)
    methods = [name for name in METHODS if arguments.only in (None, name)]
    seconds: dict[str, list[float]] = {name: [] for name in ("cp", *methods)}
    excess: dict[str, list[float]] = {name: [] for name in methods}
    same = None
    for number in range(arguments.rounds):
        seconds["cp"].append(copy(base, output))
        shutil.rmtree(output)
        for name in methods:
            measured = _worker(name, base, adapter, output)
            seconds[name].append(measured["seconds"])
            excess[name].append(measured["rss_excess_mib"])
            if name == "lockadapt" and number == 0:
                same = identical(base, adapter, output)
            shutil.rmtree(output)
        print(f"round {number + 1}: {_latest(seconds)}", file=sys.stderr, flush=True)
    size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    return {
        "bytes": size,
        "shards": arguments.shards,
        "seconds": seconds,
        "rss_excess_mib": excess,
        "bit_identical": same,
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
    }


def _worker(name: str, base: Path, adapter: Path, output: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--worker", name, "--paths", str(base), str(adapter), str(output)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def _latest(seconds: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items())


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """The contract's keys: ratios of the fastest rounds, and the largest excess."""
    best = {name: min(values) for name, values in report["seconds"].items()}
    worst = {name: max(values) for name, values in report["rss_excess_mib"].items()}
    over = {name: round(best[name] / best["cp"], 3) if name in best else None for name in METHODS}
    return {
        "merge_over_cp": over["lockadapt"],
        "peft_over_cp": over["peft"],
        "shard_dict_over_cp": over["shard_dict"],
        "rss_excess_mib": round(worst["lockadapt"]) if "lockadapt" in worst else None,
        "peft_rss_excess_mib": round(worst["peft"]) if "peft" in worst else None,
        "bit_identical": report["bit_identical"],
    }


def table(report: dict[str, Any]) -> Iterable[str]:
    """For the terminal."""
    yield f"{report['bytes'] / 1e9:.2f} GB in {report['shards']} files, rank {RANK}, {report['cores']} cores"
    best = min(report["seconds"]["cp"])
    for name, values in report["seconds"].items():
        memory = f"{max(report['rss_excess_mib'][name]):6.0f} MiB" if name != "cp" else ""
        yield f"{name:<12} fastest {min(values):6.2f} s  {min(values) / best:5.2f} x cp  {memory}"
    yield f"bit for bit what the plain way computes: {report['bit_identical']}"


def _peak() -> float:
    """VmHWM of this process in MiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def main() -> None:
    """Reads the command line, measures, prints; exit code 1 if lockadapt misses its limits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=LAYERS, help="12: 1.3 GB; 108: 10 GB")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--only", choices=METHODS, help="beside cp")
    parser.add_argument("--room", type=Path, help="folder on the disk to measure; default: the temporary one")
    parser.add_argument("--details", type=Path, help="all numbers, as JSON")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--paths", type=Path, nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(work(arguments.worker, *arguments.paths)))
        return
    with tempfile.TemporaryDirectory(prefix="lockadapt-merge-", dir=arguments.room) as scratch:
        report = measure(arguments, Path(scratch))
    short = summary(report)
    if arguments.details:
        arguments.details.parent.mkdir(parents=True, exist_ok=True)
        arguments.details.write_text(json.dumps({**report, "summary": short}, indent=1) + "\n")
    print(json.dumps(short) if arguments.json else "\n".join(table(report)))
    if short["merge_over_cp"] is not None and (
        short["merge_over_cp"] > TIME_LIMIT
        or short["rss_excess_mib"] > RSS_LIMIT
        or not short["bit_identical"]
    ):
        sys.exit(1)


if __name__ == "__main__":
    main()
