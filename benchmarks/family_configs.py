"""Small configs of the decoder families that Transformers builds: all kinds of layers, all sizes tiny."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import transformers

PLAIN = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
}
GROUPED = {**PLAIN, "num_key_value_heads": 2}
HEADS = {**GROUPED, "head_dim": 16}
FOUR = {**HEADS, "num_hidden_layers": 4}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
TOP2 = {"num_experts_per_tok": 2}
LOCAL = {**TOP2, "num_local_experts": 4}
EXPERTS = {**TOP2, "num_experts": 4, "moe_intermediate_size": 32}
ROUTED = {**TOP2, "n_routed_experts": 4, "moe_intermediate_size": 32, "first_k_dense_replace": 1}
LATENT = {"kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
DEEPSEEK = {
    **PLAIN,
    "num_key_value_heads": 4,
    **ROUTED,
    **LATENT,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
MAMBA2 = {"mamba_n_heads": 4, "mamba_d_state": 16, "mamba_n_groups": 1}
GEMMA = {"query_pre_attn_scalar": 16, "sliding_window": 128}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}


@dataclass(frozen=True)
class Family:
    """A config class and small values for it.

    Attributes:
        config: its name in Transformers.
        values: what the constructor gets beside the vocabulary's size and special tokens.
        ends: whether it takes the ids of special tokens.
    """

    config: str
    values: Mapping[str, Any] = field(default_factory=dict)
    ends: bool = True

    def build(self, vocabulary: int) -> Any:
        """The config for a vocabulary of so many rows; `<s>` is 1, `</s>` 2, padding 0."""
        ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0} if self.ends else {}
        return getattr(transformers, self.config)(vocab_size=vocabulary, **self.values, **ids)


FAMILIES = {
    "apertus": Family("ApertusConfig", {**GROUPED, **ROPE}),
    "arcee": Family("ArceeConfig", GROUPED),
    "bamba": Family("BambaConfig", {**GROUPED, **MAMBA2, "attn_layer_indices": [1], "mamba_d_head": 32}),
    "bert": Family("BertConfig", {**PLAIN, "is_decoder": True}),
    "biogpt": Family("BioGptConfig", PLAIN),
    "bitnet": Family("BitNetConfig", GROUPED),
    "bloom": Family("BloomConfig", {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "codegen": Family("CodeGenConfig", {**GPT2, "rotary_dim": 8}),
    "cohere": Family("CohereConfig", GROUPED),
    "cohere2": Family("Cohere2Config", {**GROUPED, "sliding_window": 128}),
    "ctrl": Family("CTRLConfig", {**GPT2, "dff": 128}, ends=False),
    "cwm": Family("CwmConfig", {**HEADS, **ROPE, "sliding_window": 128}),
    "deepseek_v2": Family("DeepseekV2Config", {**DEEPSEEK, "q_lora_rank": None}),
    "deepseek_v3": Family("DeepseekV3Config", {**DEEPSEEK, "q_lora_rank": 16}),
    "diffllama": Family("DiffLlamaConfig", GROUPED),
    "doge": Family("DogeConfig", GROUPED),
    "dots1": Family(
        "Dots1Config", {**GROUPED, **ROUTED, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
    ),
    "electra": Family("ElectraConfig", {**PLAIN, "embedding_size": 64, "is_decoder": True}),
    "ernie4_5": Family("Ernie4_5Config", HEADS),
    "ernie4_5_moe": Family(
        "Ernie4_5_MoeConfig",
        {
            **GROUPED,
            "moe_intermediate_size": 32,
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_num_shared_experts": 1,
        },
    ),
    "exaone4": Family("Exaone4Config", {**GROUPED, "sliding_window": 128}),
    "falcon": Family("FalconConfig", {k: v for k, v in PLAIN.items() if k != "intermediate_size"}),
    "falcon_h1": Family("FalconH1Config", {**GROUPED, **MAMBA2, "mamba_d_ssm": 64, "mamba_d_head": 16}),
    "falcon_mamba": Family("FalconMambaConfig", {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}),
    "flex_olmo": Family("FlexOlmoConfig", {**GROUPED, **TOP2, "num_experts": 4}),
    "gemma": Family("GemmaConfig", HEADS),
    "gemma2": Family("Gemma2Config", {**HEADS, **GEMMA}),
    "gemma3_text": Family("Gemma3TextConfig", {**HEADS, **GEMMA}),
    "gemma4_text": Family(
        "Gemma4TextConfig",
        {**HEADS, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "sliding_window": 128},
    ),
    "glm": Family("GlmConfig", HEADS),
    "glm4": Family("Glm4Config", HEADS),
    "glm4_moe": Family("Glm4MoeConfig", {**HEADS, **ROUTED}),
    "gpt2": Family("GPT2Config", GPT2),
    "gpt_bigcode": Family("GPTBigCodeConfig", GPT2),
    "gpt_neo": Family(
        "GPTNeoConfig",
        {
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 512,
        },
    ),
    "gpt_neox": Family("GPTNeoXConfig", PLAIN),
    "gpt_neox_japanese": Family(
        "GPTNeoXJapaneseConfig", {k: v for k, v in PLAIN.items() if k != "intermediate_size"}
    ),
    "gpt_oss": Family("GptOssConfig", {**HEADS, **LOCAL, **ROPE, "sliding_window": 128}),
    "gptj": Family("GPTJConfig", {**GPT2, "rotary_dim": 8}),
    "granite": Family("GraniteConfig", GROUPED),
    "granite_scaled": Family("GraniteConfig", {**GROUPED, "logits_scaling": 4.0}),
    "granitemoe": Family("GraniteMoeConfig", {**GROUPED, **LOCAL}),
    "granitemoehybrid": Family(
        "GraniteMoeHybridConfig",
        {
            **GROUPED,
            **MAMBA2,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "shared_intermediate_size": 64,
            "layer_types": ["mamba", "attention"],
            "mamba_d_head": 32,
        },
    ),
    "granitemoeshared": Family(
        "GraniteMoeSharedConfig", {**GROUPED, **LOCAL, "shared_intermediate_size": 64}
    ),
    "helium": Family("HeliumConfig", HEADS),
    "hunyuan_v1_dense": Family("HunYuanDenseV1Config", HEADS),
    "hunyuan_v1_moe": Family("HunYuanMoEV1Config", {**HEADS, "num_experts": 4, "moe_topk": [2, 2]}),
    "internlm3": Family("InternLM3Config", GROUPED),
    "jamba": Family(
        "JambaConfig",
        {
            **GROUPED,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "mamba_d_state": 8,
            "use_mamba_kernels": False,
        },
    ),
    "jetmoe": Family("JetMoeConfig", {**PLAIN, "num_key_value_heads": 2, "kv_channels": 16, **LOCAL}),
    "kimi_linear": Family(
        "KimiLinearConfig", {**PLAIN, "layer_types": ["linear_attention", "full_attention"]}
    ),
    "lfm2": Family(
        "Lfm2Config", {**GROUPED, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8}
    ),
    "lfm2_moe": Family(
        "Lfm2MoeConfig",
        {**GROUPED, **EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    ),
    "llama": Family("LlamaConfig", GROUPED),
    "llama4_text": Family(
        "Llama4TextConfig", {**HEADS, "intermediate_size_mlp": 128, "num_local_experts": 2}
    ),
    "mamba": Family("MambaConfig", {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}),
    "mamba2": Family(
        "Mamba2Config",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "state_size": 16,
            "num_heads": 8,
            "head_dim": 16,
            "n_groups": 1,
        },
    ),
    "minicpm3": Family("MiniCPM3Config", {**PLAIN, "num_key_value_heads": 4, **LATENT, "q_lora_rank": 16}),
    "minimax": Family(
        "MiniMaxConfig", {**HEADS, **LOCAL, "layer_types": ["full_attention", "linear_attention"]}
    ),
    "minimax_m2": Family("MiniMaxM2Config", {**HEADS, **LOCAL}),
    "ministral": Family("MinistralConfig", {**HEADS, "sliding_window": 128}),
    "ministral3": Family("Ministral3Config", HEADS),
    "mistral": Family("MistralConfig", {**HEADS, "sliding_window": None}),
    "mixtral": Family("MixtralConfig", {**GROUPED, **LOCAL}),
    "modernbert-decoder": Family("ModernBertDecoderConfig", {**PLAIN, "cls_token_id": 1, "sep_token_id": 2}),
    "mpt": Family("MptConfig", {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 512}),
    "nanochat": Family("NanoChatConfig", GROUPED),
    "nemotron": Family("NemotronConfig", GROUPED),
    "olmo": Family("OlmoConfig", GROUPED),
    "olmo2": Family("Olmo2Config", GROUPED),
    "olmo3": Family("Olmo3Config", {**GROUPED, "sliding_window": 128}),
    "olmoe": Family("OlmoeConfig", {**GROUPED, **TOP2, "num_experts": 4}),
    "openai-gpt": Family("OpenAIGPTConfig", GPT2, ends=False),
    "opt": Family("OPTConfig", {**PLAIN, "ffn_dim": 128, "word_embed_proj_dim": 64}),
    "persimmon": Family("PersimmonConfig", PLAIN),
    "phi": Family("PhiConfig", PLAIN),
    "phi3": Family("Phi3Config", GROUPED),
    "phimoe": Family("PhimoeConfig", {**GROUPED, **LOCAL}),
    "qwen2": Family("Qwen2Config", GROUPED),
    "qwen2_moe": Family("Qwen2MoeConfig", {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 64}),
    "qwen3": Family("Qwen3Config", HEADS),
    "qwen3_5_text": Family("Qwen3_5TextConfig", {**FOUR, **LINEAR}),
    "qwen3_moe": Family("Qwen3MoeConfig", {**HEADS, **EXPERTS}),
    "qwen3_next": Family(
        "Qwen3NextConfig", {**FOUR, **LINEAR, **EXPERTS, "shared_expert_intermediate_size": 32}
    ),
    "recurrent_gemma": Family(
        "RecurrentGemmaConfig",
        {**GROUPED, "num_hidden_layers": 3, "attention_window_size": 64, "lru_width": 64},
    ),
    "rwkv": Family("RwkvConfig", {"hidden_size": 64, "num_hidden_layers": 2, "context_length": 512}),
    "seed_oss": Family("SeedOssConfig", HEADS),
    "smollm3": Family("SmolLM3Config", GROUPED),
    "stablelm": Family("StableLmConfig", GROUPED),
    "starcoder2": Family("Starcoder2Config", GROUPED),
    "t5": Family("T5Config", {"d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 4}, ends=False),
    "vaultgemma": Family("VaultGemmaConfig", {**HEADS, **GEMMA}),
    "xglm": Family("XGLMConfig", {"d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 128}),
    "xlnet": Family("XLNetConfig", {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128}),
    "zamba2": Family(
        "Zamba2Config",
        {
            **PLAIN,
            "mamba_d_state": 16,
            "n_mamba_heads": 4,
            "mamba_headdim": 32,
            "mamba_ngroups": 1,
            "hybrid_layer_ids": [1],
            "layers_block_type": ["mamba", "hybrid"],
            "num_mem_blocks": 1,
        },
    ),
}
