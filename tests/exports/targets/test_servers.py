"""Servers' rules as checks: what passes, and every refusal by its own reason."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import transformers as hf

from lockadapt.exports.targets.servers import Served, max_lora_rank, rank_of, servable, serve_command

ADAPTER = {"peft_type": "LORA", "r": 16, "bias": "none", "use_dora": False, "init_lora_weights": True}
KEYS = tuple(
    f"base_model.model.model.language_model.layers.0.{layer}.lora_{half}.weight"
    for layer in ("self_attn.q_proj", "mlp.down_proj")
    for half in "AB"
)


def config(
    tower: str = "siglip_vision_model", llm: str = "LlamaForCausalLM", kind: Any = hf.LlavaConfig
) -> Any:
    """A stock config with the model types that rules look at."""
    text = hf.LlamaConfig(architectures=[llm])
    made = kind(text_config=text, vision_config=hf.AutoConfig.for_model(tower))
    made.architectures = [kind.__name__.replace("Config", "ForConditionalGeneration")]
    return made


GOOD = Served(config(), ["vision_tower.vision_model.post_layernorm.weight"], "none", ADAPTER, KEYS)


def test_what_vllm_takes() -> None:
    assert servable(GOOD)["vllm"] is True
    assert servable(GOOD)["load_adapter"] is True
    assert servable(dataclasses.replace(GOOD, adapter=None, adapter_keys=()))["vllm"] is True
    rows = {**ADAPTER, "use_rslora": True, "rank_pattern": {"q_proj": 64}, "init_lora_weights": "orthogonal"}
    assert servable(dataclasses.replace(GOOD, adapter=rows))["vllm"] is True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"config": config(kind=hf.FastVlmConfig, tower="timm_wrapper")},
            "has no FastVlmForConditionalGeneration",
        ),
        ({"config": config(tower="dinov2")}, "takes no dinov2 tower"),
        ({"config": config(llm="XGLMForCausalLM")}, "does not list XGLMForCausalLM"),
        ({"keys": ["vision_tower.post_layernorm.weight"]}, "below `vision_model.`"),
        ({"quantization": "nf4"}, "trained on a base in nf4"),
        ({"adapter": {**ADAPTER, "modules_to_save": ["model.multi_modal_projector"]}}, "no modules_to_save"),
        ({"adapter": {**ADAPTER, "use_dora": True}}, "no DoRA"),
        ({"adapter": {**ADAPTER, "lora_bias": True}}, "no bias"),
        ({"adapter": {**ADAPTER, "bias": "all"}}, "no bias"),
        ({"adapter": {**ADAPTER, "init_lora_weights": "pissa"}}, "init_lora_weights='pissa'"),
        ({"adapter": {**ADAPTER, "layer_replication": [[0, 1]]}}, "no layer_replication"),
        ({"adapter": {**ADAPTER, "r": 513}}, "no rank above 512"),
        ({"adapter": {**ADAPTER, "rank_pattern": {"q_proj": 600}}}, "this is 600"),
        (
            {"adapter_keys": [*KEYS, "x.embed_tokens.token_adapter.trainable_tokens_delta"]},
            "trainable_tokens_delta",
        ),
        ({"adapter_keys": ["x.layers.0.attn.c_attn.lora_A.weight"]}, "this has c_attn"),
    ],
)
def test_what_vllm_refuses(change: dict[str, Any], message: str) -> None:
    answer = servable(dataclasses.replace(GOOD, **change))["vllm"]
    assert isinstance(answer, str)
    assert message in answer
    assert ";" not in answer, "one change, one reason"


def existing(kind: Any) -> Any:
    """The config of an existing class."""
    made = kind()
    made.architectures = [kind.__name__.replace("Config", "ForConditionalGeneration")]
    return made


@pytest.mark.parametrize(
    "kind",
    [
        *(hf.Qwen2VLConfig, hf.Qwen2_5_VLConfig, hf.Qwen3VLConfig, hf.Idefics3Config, hf.InternVLConfig),
        *(hf.Gemma3Config, hf.LlavaNextConfig, hf.Mistral3Config, hf.SmolVLMConfig),
    ],
)
def test_existing_classes_that_vllm_adapts(kind: Any) -> None:
    served = dataclasses.replace(GOOD, config=existing(kind))
    assert servable(served)["vllm"] is True
    full = dataclasses.replace(served, adapter={**ADAPTER, "modules_to_save": ["model.visual.merger"]})
    assert "no modules_to_save" in str(servable(full)["vllm"])


def test_existing_classes_that_vllm_does_not_adapt() -> None:
    served = dataclasses.replace(GOOD, config=existing(hf.LlavaOnevisionConfig))
    assert servable(served)["vllm"] == (
        "vLLM 0.33 takes no adapters on LlavaOnevisionForConditionalGeneration: serve what `lockadapt merge` "
        "writes"
    )
    assert servable(dataclasses.replace(served, adapter=None, adapter_keys=()))["vllm"] is True
    assert "rules were read for LLaVA only, not for LlavaOnevision" in str(servable(served)["sglang"])
    absent = dataclasses.replace(GOOD, config=existing(hf.AyaVisionConfig))
    assert servable(absent)["vllm"] == "vLLM 0.33 has no AyaVisionForConditionalGeneration"
    flat = dataclasses.replace(GOOD, config=existing(hf.Gemma3Config), keys=["vision_tower.embeddings.x"])
    assert "below `vision_model.`" in str(servable(flat)["vllm"])


def test_sglang() -> None:
    answer = servable(GOOD)["sglang"]
    assert "Pixtral tower only, not siglip_vision_model" in str(answer)
    assert "q_proj, k_proj, v_proj of the tower" in str(answer)
    inner = tuple(key for key in KEYS if "mlp" in key)
    pixtral = dataclasses.replace(GOOD, config=config(tower="pixtral"), adapter_keys=inner)
    assert servable(pixtral)["sglang"] is True
    dora = dataclasses.replace(pixtral, adapter={**ADAPTER, "use_dora": True})
    assert "no DoRA" in str(servable(dora)["sglang"])
    assert "in int8" in str(servable(dataclasses.replace(pixtral, quantization="int8"))["sglang"])


def test_the_command_names_a_rank_that_vllm_knows() -> None:
    assert [max_lora_rank(rank) for rank in (1, 4, 16, 17, 512, 513)] == [1, 8, 16, 32, 512, None]
    assert rank_of({"r": 4, "rank_pattern": {"q_proj": 24}}) == 24
    assert serve_command("B", "A", "mine", 24) == (
        "vllm serve B --enable-lora --max-lora-rank 32 --lora-modules mine=A"
    )
