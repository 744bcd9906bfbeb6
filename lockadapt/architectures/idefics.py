"""IDEFICS-1 (arXiv 2306.16527, after Flamingo): gated cross-attention between the blocks of a plain Llama.

The gates start at zero, so that the assembled model's logits are the LLM's own whatever the image. Texts
without an image pass by the cross-attention; where the gates of its feed-forward layers stay zero too, they
stay the LLM's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import IdeficsConfig, IdeficsForVisionText2Text
from transformers.models.idefics.configuration_idefics import IdeficsVisionConfig
from transformers.models.idefics.modeling_idefics import IdeficsRotaryEmbedding
from transformers.models.idefics.vision import IdeficsVisionTransformer

from lockadapt.architectures.assembly import Assembly, Fusion, Ingredients
from lockadapt.architectures.base import Architecture, Beside, Clients, ModelLayout, Positions
from lockadapt.architectures.beside import (
    CROSS_ATTENTION,
    INPUTS,
    REFUSED,
    draw_,
    last_hidden_state,
    processor,
    standardise,
    tower_features,
)
from lockadapt.architectures.bridge import forget_origin, make_room
from lockadapt.errors import AssemblyError
from lockadapt.models.quiet import quiet
from lockadapt.models.sources import some, tolerance

GATED = "model.gated_cross_attn_layers"
LAYOUT = ModelLayout(
    tower="model.vision_model",
    llm="model",
    projector=(GATED,),
    head="lm_head",
    blocks=("model.layers",),
)
RESAMPLER = "model.perceiver_resampler"
"""Some checkpoints have one; none is assembled."""

GATED_LAYERS = 4
"""At least so many, in LLMs that have as many blocks."""
WIDEST_INTERVAL = 4
"""Blocks between gated layers, as in IDEFICS-9B."""

LLAMA = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"),
)
"""What a block holds, without biases."""


def hold_tower(ingredients: Ingredients, fusion: Fusion, pixel_values: Tensor | None) -> Any:
    """The tower as the class's own vision transformer, which is CLIP's; see `Assembly.tower`."""
    tower, given = ingredients.tower, ingredients.tower.config
    config = vision_config(given)
    config._attn_implementation = given._attn_implementation
    with torch.device("meta"):
        held = IdeficsVisionTransformer(config)
    lost = held.load_state_dict(tower.state_dict(), strict=False, assign=True)
    if lost.unexpected_keys or lost.missing_keys:
        raise _not_clip(ingredients, some([*lost.unexpected_keys, *lost.missing_keys]))
    embeddings: Any = held.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions, device=tower.device).expand((1, -1))
    held = held.eval().requires_grad_(False)
    if pixel_values is not None:
        values = pixel_values.to(tower.dtype)
        with torch.no_grad():
            theirs, ours = (part(pixel_values=values).last_hidden_state for part in (tower, held))
        if not bool(((theirs - ours).abs() <= tolerance(tower.dtype, theirs)).all()):
            raise _not_clip(ingredients, "its outputs differ")
    return held


def vision_config(given: Any) -> IdeficsVisionConfig:
    """A CLIP vision config in the class's terms."""
    names = ("image_size", "patch_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    shared = {name: getattr(given, name) for name in (*names, "hidden_act", "layer_norm_eps", "num_channels")}
    return IdeficsVisionConfig(embed_dim=given.hidden_size, **shared)


def build(ingredients: Ingredients, fusion: Fusion, seed: int) -> Any:
    """See `Assembly.build`. Grouped keys and values are repeated: the class has one for each query head."""
    llm: Any = ingredients.llm
    tower = ingredients.tower
    given, tied = llm.config, ingredients.text.keeps_tie
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
    kept = ("rms_norm_eps", "max_position_embeddings", "rope_parameters", "bos_token_id", "eos_token_id")
    config = IdeficsConfig(
        **{name: getattr(given, name) for name in (*names, *kept)},
        vocab_size=llm.get_input_embeddings().weight.shape[0],
        additional_vocab_size=0,
        pad_token_id=ingredients.tokenizer.pad_token_id,
        tie_word_embeddings=tied,
        cross_layer_interval=interval(given.num_hidden_layers),
        vision_config=tower.config.to_dict(),
        freeze_text_layers=False,
        freeze_vision_layers=False,
    )
    with torch.device("meta"), quiet():
        model: Any = IdeficsForVisionText2Text(config)
    model.set_submodule(LAYOUT.tower, tower)
    body = model.model.load_state_dict(_spread(llm), strict=False, assign=True)
    lost = [
        key for key in body.missing_keys if not key.startswith(("gated_cross_attn_layers.", "vision_model."))
    ]
    if lost or body.unexpected_keys:
        raise AssemblyError(
            f"{type(llm).__name__} is no plain Llama: {some([*lost, *body.unexpected_keys])}",
            fix="choose another fusion",
        )
    model.lm_head.weight = (
        model.model.embed_tokens.weight
        if tied
        else nn.Parameter(llm.get_output_embeddings().weight.detach().clone())
    )
    for module in list(model.modules()):
        # Frequencies lie in no file: a module that is built with values has them.
        if isinstance(getattr(module, "rotary_emb", None), IdeficsRotaryEmbedding):
            module.rotary_emb = IdeficsRotaryEmbedding(config).to(llm.device)
    gated = model.get_submodule(GATED)
    _start(gated, llm, torch.Generator().manual_seed(seed))
    forget_origin(llm.dtype, model.config, model.config.vision_config)
    return model.eval().requires_grad_(False)


def interval(depth: int) -> int:
    """Blocks between gated layers: as many as divide the depth and leave enough layers."""
    fitting = [
        blocks
        for blocks in range(1, WIDEST_INTERVAL + 1)
        if depth % blocks == 0 and depth // blocks >= min(GATED_LAYERS, depth)
    ]
    return max(fitting)


def _spread(llm: Any) -> dict[str, Tensor]:
    """The LLM's tensors with a key and a value head for each query head."""
    config = llm.config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    tensors = dict(llm.base_model.state_dict())
    for name, tensor in tensors.items():
        if groups != heads and name.endswith(("self_attn.k_proj.weight", "self_attn.v_proj.weight")):
            rows = tensor.view(groups, -1, tensor.shape[-1]).repeat_interleave(heads // groups, 0)
            tensors[name] = rows.reshape(-1, tensor.shape[-1])
    return tensors


@torch.no_grad()
def _start(gated: nn.Module, llm: Any, generator: torch.Generator) -> None:
    """Gates zero, norms as by default, matrices drawn."""
    make_room(gated, llm)
    for name, parameter in gated.named_parameters():
        if "alpha" in name:
            parameter.zero_()
        elif "layernorm" in name:
            parameter.fill_(1.0)
        else:
            draw_(parameter, generator)


def locate(model: Any) -> ModelLayout:
    """Where the parts are: some checkpoints have a resampler, which is read first."""
    fresh = (RESAMPLER, GATED) if hasattr(model.model, "perceiver_resampler") else (GATED,)
    return ModelLayout(
        tower=LAYOUT.tower, llm=LAYOUT.llm, projector=fresh, head=LAYOUT.head, blocks=LAYOUT.blocks
    )


def arguments(model: Any, given: Mapping[str, Any], image_rows: Tensor) -> dict[str, Any]:
    """See `Beside.arguments`: images by row, blank where a row has fewer, seen by all its tokens."""
    made = dict(given)
    rows, tokens = made["input_ids"].shape
    device = made["input_ids"].device
    counts = torch.bincount(image_rows.to(device), minlength=rows)
    most = max(int(counts.max()), 1)
    name = "image_encoder_embeddings" if "image_encoder_embeddings" in made else "pixel_values"
    shown = made.get(name)
    if shown is None:
        side = model.config.vision_config.image_size
        shown = torch.zeros(0, model.config.vision_config.num_channels, side, side, device=device)
        shown = shown.to(model.dtype)
    order = torch.cat([torch.arange(int(count)) for count in counts]).to(device)
    table = shown.new_zeros(rows, most, *shown.shape[1:])
    made[name] = table.index_put((image_rows.to(device), order), shown)
    sees = torch.arange(most, device=device) < counts[:, None]
    made["image_attention_mask"] = sees[:, None].expand(rows, tokens, most).long()
    return made


def probe_arguments(model: Any, token_ids: Tensor, pixel_values: Tensor) -> dict[str, Any]:
    """See `Assembly.arguments`: the image path itself, which starts as a no-op."""
    shape = (*token_ids.shape, 1)
    return {
        "input_ids": token_ids,
        "attention_mask": torch.ones_like(token_ids),
        "pixel_values": pixel_values[: len(token_ids), None],
        "image_attention_mask": torch.ones(shape, dtype=torch.long),
    }


def calibrate_model(model: Any, batches: Iterable[Tensor], embedding_rms: float) -> int:
    """See `Assembly.calibrate`: keys and values work on standardised outputs."""
    readers = [
        projection
        for layer in model.get_submodule(GATED)
        for projection in (layer.cross_attn.k_proj, layer.cross_attn.v_proj)
    ]
    return standardise(readers, batches)


def refuse(llm: Any, tower: Any) -> str | None:
    """See `Assembly.refuse`. What structure does not show (layers without positions) the proof does."""
    name, config = type(llm).__name__, llm.config
    blocks = getattr(llm.base_model, "layers", None)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        return f"{name} is no plain Llama"
    for block in blocks:
        keys = {key.removesuffix(".weight") for key in block.state_dict()}
        if others := sorted(keys - set(LLAMA)):
            return f"{name} is no plain Llama: it has {others[0]}"
        if absent := sorted(set(LLAMA) - keys):
            return f"{name} is no plain Llama: it has no {absent[0]}"
    width, heads = config.hidden_size, config.num_attention_heads
    if (getattr(config, "head_dim", None) or width // heads) * heads != width:
        return f"{name} has attention heads of another width than {width} / {heads}"
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        return f"{name} looks back {window} tokens only"
    if not hasattr(tower.config, "layer_norm_eps") or "pre_layrnorm.weight" not in tower.state_dict():
        return f"{type(tower).__name__} is no CLIP"
    return None


def locks_text(name: str) -> bool:
    """See `Beside.text_locks`: the gated feed-forward layers, which all tokens go through."""
    return any(part in name for part in (".alpha_dense", ".mlp.", ".post_attention_layernorm."))


def _not_clip(ingredients: Ingredients, what: str) -> AssemblyError:
    return AssemblyError(
        f"{type(ingredients.tower).__name__} is no CLIP that IDEFICS-1 can hold: {what}",
        where=ingredients.where,
        fix="give a CLIP tower, or choose another fusion",
    )


IDEFICS = Architecture(
    model_class=IdeficsForVisionText2Text,
    config_class=IdeficsConfig,
    layout=LAYOUT,
    inputs=INPUTS,
    assemble=Assembly(
        fusions={CROSS_ATTENTION.name: CROSS_ATTENTION},
        fusion_of=lambda config: CROSS_ATTENTION,
        towers=("tokens",),
        projected=last_hidden_state,
        build=build,
        processor=processor,
        tower=hold_tower,
        arguments=probe_arguments,
        calibrate=calibrate_model,
        refuse=refuse,
    ),
    features=tower_features(LAYOUT.tower, "image_encoder_embeddings", lambda kept: kept),
    positions=Positions(),
    clients=Clients(refused=REFUSED),
    settings=("cross_layer_interval", "use_resampler"),
    beside=Beside(arguments, left_padding=True, text_alone=True, several=True, text_locks=locks_text),
    locate=locate,
)
