"""Rules of vLLM 0.33 and SGLang 0.5.23 about models and adapters: read in their sources, not run here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from lockadapt.architectures import ARCHITECTURES, class_name
from lockadapt.errors import VerificationError

VLLM, SGLANG = "vLLM 0.33", "SGLang 0.5.23"
FLATTENED = ("clip_vision_model", "siglip_vision_model")
"""Towers that Transformers 5.6 took a level of names from, and that vLLM still wants with it."""

VLLM_TOWERS = (*FLATTENED, "pixtral")
VLLM_LLMS = (
    *("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"),
    *("GemmaForCausalLM", "Gemma3ForCausalLM", "Phi3ForCausalLM", "GPT2LMHeadModel", "OPTForCausalLM"),
    "BloomForCausalLM",
)
"""The LLMs in vLLM's registry, of those that lockadapt assembles."""

VLLM_WITH_LORA = frozenset(
    f"{name}ForConditionalGeneration"
    for name in (
        *("Qwen2VL", "Qwen2_5_VL", "Qwen3VL", "Qwen3VLMoe", "Qwen3_5", "Qwen3_5Moe", "Exaone4_5_"),
        *("Gemma3", "Gemma4", "PaliGemma", "Idefics3", "SmolVLM", "InternVL", "LlavaNext", "LlavaNextVideo"),
        *("Mistral3", "LightOnOCR", "Glm4v", "Glm4vMoe", "Lfm2Vl", "Granite4Vision", "Llama4", "Molmo2"),
    )
)
"""Existing classes in vLLM's registry that are `SupportsLoRA`, or are derived from one that is."""
VLLM_WITHOUT_LORA = frozenset(
    f"{name}ForConditionalGeneration"
    for name in ("LlavaOnevision", "Gemma3n", "Cohere2Vision", "Aria", "PaddleOCRVL")
)
"""Existing classes in vLLM's registry that are not."""

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` takes."""

ATTENTION = ("q_proj", "k_proj", "v_proj")
SUFFIXES = (*ATTENTION, "o_proj", "gate_proj", "up_proj", "down_proj")
"""Layers that vLLM looks for adapters on: it knows the fused `qkv_proj` and `gate_up_proj` by their parts."""

PLAIN_INITS = (True, False, "gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Ways to begin that leave the base as it is."""


@dataclass(frozen=True)
class Served:
    """What a server would be given.

    Attributes:
        config: the stock config of the bridge.
        keys: names of all tensors in the bridge's files.
        quantization: that the run was trained with.
        adapter: `adapter_config.json`, or None for a bridge alone.
        adapter_keys: names of all tensors in the adapter.
    """

    config: Any
    keys: Sequence[str]
    quantization: str
    adapter: Mapping[str, Any] | None = None
    adapter_keys: Sequence[str] = ()


def servable(served: Served) -> dict[str, bool | str]:
    """For each client True, or everything that it refuses, in words. `load_adapter` is Transformers' own."""
    checks = {"load_adapter": _load_adapter(served), "vllm": _vllm(served), "sglang": _sglang(served)}
    return {name: "; ".join(reasons) or True for name, reasons in checks.items()}


def serve_command(bridge: str, adapter: str, name: str, rank: int) -> str:
    """How vLLM is started on a bridge with an adapter."""
    return (
        f"vllm serve {bridge} --enable-lora --max-lora-rank {max_lora_rank(rank)} --lora-modules "
        f"{name}={adapter}"
    )


def max_lora_rank(rank: int) -> int | None:
    """The smallest `--max-lora-rank` that holds a rank; None if none does."""
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)


def rank_of(adapter: Mapping[str, Any]) -> int:
    """The largest rank that an adapter's config asks for."""
    return max([adapter["r"], *(adapter.get("rank_pattern") or {}).values()])


def tensor_names(folder: Path) -> list[str]:
    """Reads the names of all tensors in a stock or PEFT folder, as its files have them.

    Args:
        folder: with one safetensors file or an index.

    Returns:
        The names, sorted.

    Raises:
        VerificationError: it holds no safetensors.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return sorted(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    files = [folder / name for name in ("model.safetensors", "adapter_model.safetensors")]
    file = next((candidate for candidate in files if candidate.is_file()), None)
    if file is None:
        raise VerificationError("holds no model.safetensors", where=str(folder))
    with safe_open(file, "pt") as opened:
        return sorted(opened.keys())


def _load_adapter(served: Served) -> list[str]:
    if served.adapter is not None and served.adapter.get("use_dora"):
        return ["Transformers 5.24 leaves out DoRA's magnitudes: use PeftModel.from_pretrained"]
    return []


def _vllm(served: Served) -> list[str]:
    problems = _vllm_class(served)
    if problems is None:
        return [f"{VLLM} has no {class_name(served.config)}"]
    if served.quantization != "none":
        problems.append(
            f"trained on a base in {served.quantization}, which {VLLM} cannot load (it has no bitsandbytes): "
            "serve what `lockadapt merge` writes, or load the bridge quantized with Transformers"
        )
    if served.adapter is None:
        return problems
    adapter = served.adapter
    problems += _modules_and_dora(adapter, VLLM)
    if adapter.get("bias", "none") != "none" or adapter.get("lora_bias"):
        problems.append(f"{VLLM} takes no bias in an adapter")
    if adapter.get("init_lora_weights", True) not in PLAIN_INITS:
        problems.append(
            f"{VLLM} takes no init_lora_weights={adapter['init_lora_weights']!r}, which changes the base"
        )
    for name in ("alora_invocation_tokens", "layer_replication"):
        if adapter.get(name):
            problems.append(f"{VLLM} takes no {name}")
    if max_lora_rank(rank_of(adapter)) is None:
        problems.append(f"{VLLM} takes no rank above {VLLM_RANKS[-1]}, and this is {rank_of(adapter)}")
    return [*problems, *_keys(served.adapter_keys)]


def _vllm_class(served: Served) -> list[str] | None:
    """What vLLM refuses of class, tower and LLM; None: it does not have the class."""
    config, name = served.config, class_name(served.config)
    tower = config.vision_config.model_type if hasattr(config, "vision_config") else ""
    problems = []
    if name in VLLM_WITHOUT_LORA:
        if served.adapter is not None:
            problems.append(f"{VLLM} takes no adapters on {name}: serve what `lockadapt merge` writes")
    elif name not in VLLM_WITH_LORA:
        if not _has(config, "vllm"):
            return None
        if tower not in VLLM_TOWERS:
            problems.append(f"{VLLM} takes no {tower} tower in LLaVA, only CLIP, SigLIP and Pixtral")
        llm = (config.get_text_config().architectures or ["unknown"])[0]
        if llm not in VLLM_LLMS:
            problems.append(f"{VLLM} does not list {llm} as an LLM")
    below = any(".vision_model." in key or key.startswith("vision_model.") for key in served.keys)
    if tower in FLATTENED and not below:
        problems.append(
            f"{VLLM} looks for the tower's tensors below `vision_model.`, and this folder has them above"
        )
    return problems


def _keys(keys: Iterable[str]) -> list[str]:
    ends = (".lora_A.weight", ".lora_B.weight")
    odd = [key for key in keys if not key.endswith(ends)]
    if odd:
        return [f"{VLLM} takes nothing in an adapter but lora_A and lora_B, and this has {odd[0]}"]
    layers = sorted({key.replace(".base_layer", "").rsplit(".", 3)[1] for key in keys})
    strange = [layer for layer in layers if layer not in SUFFIXES]
    if strange:
        return [f"{VLLM} takes adapters on {', '.join(SUFFIXES)}, and this has {', '.join(strange)}"]
    return []


def _sglang(served: Served) -> list[str]:
    config = served.config
    if not _has(config, "sglang"):
        return [f"{SGLANG}'s rules were read for LLaVA only, not for {class_name(config)}"]
    tower = config.vision_config.model_type
    problems = []
    if tower != "pixtral":
        problems.append(
            f"{SGLANG} builds a LLaVA in Transformers format with a Pixtral tower only, not {tower}"
        )
    if served.quantization != "none":
        problems.append(f"trained on a base in {served.quantization}: serve what `lockadapt merge` writes")
    if served.adapter is None:
        return problems
    problems += _modules_and_dora(served.adapter, SGLANG)
    if {key.rsplit(".", 3)[1] for key in served.adapter_keys} & set(ATTENTION):
        problems.append(f"{SGLANG} would put LLaVA's adapters on {', '.join(ATTENTION)} of the tower as well")
    return problems


def _modules_and_dora(adapter: Mapping[str, Any], server: str) -> list[str]:
    problems = []
    if adapter.get("modules_to_save"):
        problems.append(
            f"{server} takes no modules_to_save: use --to adapter, whose bridge holds the projector"
        )
    if adapter.get("use_dora"):
        problems.append(f"{server} takes no DoRA")
    return problems


def _has(config: Any, server: str) -> bool:
    name = class_name(config)
    return any(
        architecture.model_class.__name__ == name and server in architecture.clients.servers
        for architecture in ARCHITECTURES
    )
