"""The stock Granite 4 Vision model around a tower and a plain Llama, with fresh queries between them."""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Granite4VisionConfig, Granite4VisionForConditionalGeneration, Granite4VisionProcessor
from transformers.models.granite4_vision.configuration_granite4_vision import Granite4VisionTextConfig
from transformers.models.granite4_vision.modeling_granite4_vision import Granite4VisionTextRotaryEmbedding

from lockadapt.architectures.assembly import Fusion, Ingredients
from lockadapt.architectures.bridge import feature_strategy, forget_origin, make_room, same_structure
from lockadapt.architectures.granite4_vision.windows import LAYERS, downsample_rate
from lockadapt.architectures.llava_next import newline, pinpoints, tile_processor
from lockadapt.errors import AssemblyError
from lockadapt.models.embeddings import image_token_id
from lockadapt.models.quiet import quiet
from lockadapt.models.sources import some

HEAD = 64
"""Channels of a Q-Former's head: the class derives their number from the tower's width."""

WEIGHTS = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"),
)
"""What has a weight in each block of a text model that the class can hold."""
BIASES = (WEIGHTS[:4], WEIGHTS[4:7])
"""What has a bias, all or none of a group; one that is absent beside others is zero."""
COPIED = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_parameters"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
)
"""Fields of the text's config."""


def refuse(llm: Any, tower: Any) -> str | None:
    """See `Assembly.refuse`. What structure does not show (layers without positions) the proof does."""
    name, config = type(llm).__name__, llm.config
    blocks = getattr(llm.base_model, "layers", None)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        return f"{name} is no plain Llama"
    known = {f"{part}.weight" for part in WEIGHTS} | {f"{part}.bias" for group in BIASES for part in group}
    for block in blocks:
        keys = set(block.state_dict())
        if others := sorted(keys - known):
            return f"{name} is no plain Llama: it has {others[0]}"
        if absent := sorted({f"{part}.weight" for part in WEIGHTS} - keys):
            return f"{name} is no plain Llama: it has no {absent[0]}"
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        return f"{name} looks back {window} tokens only"
    width = getattr(tower.config, "hidden_size", None)
    if width is None or width % HEAD:
        return f"{type(tower).__name__} is {width} channels wide, no multiple of {HEAD}"
    return None


def build(ingredients: Ingredients, fusion: Fusion, seed: int) -> Any:
    """See `Assembly.build`. Four projectors that the class has for spatial samples are zero, and not used."""
    llm: Any = ingredients.llm
    tower, vision = ingredients.tower, ingredients.vision
    given, tied, layer = llm.config, ingredients.text.keeps_tie, vision.feature_layer
    rate = downsample_rate(vision.image_size // vision.patch_size, isqrt(ingredients.queries))
    body = dict(llm.base_model.state_dict())
    biased = [any(f"layers.0.{name}.bias" in body for name in group) for group in BIASES]
    width = getattr(given, "head_dim", None) or given.hidden_size // given.num_attention_heads
    fields = {name: getattr(given, name) for name in COPIED}
    fields |= {"vocab_size": llm.get_input_embeddings().weight.shape[0], "head_dim": width}
    text = Granite4VisionTextConfig(
        **fields,
        attention_multiplier=width**-0.5,
        attention_bias=biased[0],
        mlp_bias=biased[1],
        tie_word_embeddings=tied,
    )
    settings: dict[str, Any] = {
        "downsample_rate": rate,
        "deepstack_layer_map": [[layer, 0]],
        "spatial_vision_layer": layer,
        "spatial_target_layers": [],
        "vision_feature_layer": layer,
        "vision_feature_select_strategy": feature_strategy(vision),
        "image_token_index": image_token_id(ingredients.tokenizer),
        "image_grid_pinpoints": pinpoints(ingredients),
        "image_seq_length": ingredients.queries,
    }
    config = Granite4VisionConfig(
        text_config=text,
        vision_config=tower.config,
        qformer_config={
            "model_type": "blip_2_qformer",
            "num_hidden_layers": LAYERS,
            "intermediate_size": 2 * tower.config.hidden_size,
            "cross_attention_frequency": 1,
            "use_qformer_text_input": False,
            # Samples of an image share its tokens, so that each is computed as if it stood alone.
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        projector_dropout=0.0,
        tie_word_embeddings=tied,
        **settings,
    )
    with torch.device("meta"), quiet():
        model: Any = Granite4VisionForConditionalGeneration(config)
    same_structure("tower", model.model.vision_tower, tower)
    model.model.vision_tower = tower
    _put_llm(model, llm, body, tied)
    for part in (model.model.layerwise_projectors, model.model.spatial_projectors):
        make_room(part, llm)
    fusion.initialise(model.model.layerwise_projectors[0], torch.Generator().manual_seed(seed))
    for unused in model.model.spatial_projectors.parameters():
        nn.init.zeros_(unused)
    model.model.image_newline = newline(ingredients, seed)
    forget_origin(llm.dtype, model.config, text, tower.config, model.config.qformer_config)
    return model.eval()


def _put_llm(model: Any, llm: Any, body: dict[str, Tensor], tied: bool) -> None:
    """The LLM's own tensors, and zeros for biases that it lacks beside others."""
    held = model.model.language_model
    for name, tensor in held.state_dict().items():
        if name.endswith(".bias") and name not in body:
            body[name] = torch.zeros(tensor.shape, dtype=llm.dtype, device=llm.device)
    lost = held.load_state_dict(body, strict=False, assign=True)
    if lost.missing_keys or lost.unexpected_keys:
        raise AssemblyError(
            f"{type(llm).__name__} is no plain Llama: {some([*lost.missing_keys, *lost.unexpected_keys])}",
            fix="choose another fusion",
        )
    # Frequencies lie in no file: a module that is built with values has them.
    held.rotary_emb = Granite4VisionTextRotaryEmbedding(model.config.text_config).to(llm.device)
    weight = llm.get_output_embeddings().weight
    model.lm_head.weight = held.embed_tokens.weight if tied else nn.Parameter(weight.detach().clone())
    model.requires_grad_(False)


def processor(ingredients: Ingredients, template: str) -> Any:
    """The stock processor: no crop, and the tower's colours; its count is that of the class's features."""
    vision = ingredients.vision
    return Granite4VisionProcessor(
        tile_processor(ingredients),
        ingredients.tokenizer,
        chat_template=template,
        patch_size=vision.patch_size,
        num_additional_image_tokens=vision.extra_tokens,
        vision_feature_select_strategy=feature_strategy(vision),
        downsample_rate=downsample_rate(vision.image_size // vision.patch_size, isqrt(ingredients.queries)),
    )
