"""How llama.cpp's LLaVA graph reads a CLIP or SigLIP tower with a two-layer projector: names and limits.

The graph is `clip_graph_llava` with projector type `mlp` (`tools/mtmd/models/llava.cpp`,
`tools/mtmd/clip.cpp`): class token if there is one, positions, LayerNorm in front if there is one, blocks up
to the feature layer, then linear, GELU, linear. What lies behind the feature layer (further blocks, last
LayerNorm, pooling head) must not be in the file: a LayerNorm there would be applied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from lockadapt.models.preprocessing import pixels

CLIP, SIGLIP = "clip_vision_model", "siglip_vision_model"
STRATEGIES = {CLIP: "default", SIGLIP: "full"}
"""With a class token the graph always drops the first feature; without one it never does."""
ACTIVATIONS = {
    "gelu": "clip.use_gelu",
    "gelu_pytorch_tanh": "clip.use_gelu",
    "gelu_new": "clip.use_gelu",
    "silu": "clip.use_silu",
    "quick_gelu": None,
}
"""By which key a block's activation is asked for. llama.cpp has one GELU there, by tanh."""
GELUS = ("gelu", "gelu_pytorch_tanh", "gelu_new")
ONCE = {
    "embeddings.class_embedding": "v.class_embd",
    "embeddings.patch_embedding.weight": "v.patch_embd.weight",
    "embeddings.patch_embedding.bias": "v.patch_embd.bias",
    "embeddings.position_embedding.weight": "v.position_embd.weight",
    "pre_layrnorm.weight": "v.pre_ln.weight",
    "pre_layrnorm.bias": "v.pre_ln.bias",
}
IN_BLOCKS = {
    "layer_norm1": "ln1",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "layer_norm2": "ln2",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
PROJECTOR = {"linear_1": "mm.0", "linear_2": "mm.2"}
BLOCKS, BEHIND = "encoder.layers.", ("post_layernorm.", "head.")


@dataclass(frozen=True)
class Colours:
    """Turns 0 … 1 into pixel values, (x - mean) / std, for red, green, blue; `side` in pixels."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    side: int


def tower_refusal(config: Any) -> str | None:
    """Why the graph cannot hold a LLaVA with this config, or None."""
    vision = config.vision_config
    if vision.model_type not in STRATEGIES:
        return (
            "llama.cpp reads CLIP and SigLIP towers in this class, not "
            f"{vision.model_type.removesuffix('_model')}"
        )
    if config.projector_hidden_act not in GELUS:
        return (
            "llama.cpp's two-layer projector always has a GELU inside, this one "
            f"{config.projector_hidden_act!r}"
        )
    if vision.hidden_act not in ACTIVATIONS:
        return f"llama.cpp's towers have no activation {vision.hidden_act!r}"
    wanted = STRATEGIES[vision.model_type]
    if config.vision_feature_select_strategy != wanted:
        return (
            f"vision_feature_select_strategy must be {wanted!r} for this tower, it is "
            f"{config.vision_feature_select_strategy!r}"
        )
    if not isinstance(config.vision_feature_layer, int):
        return "features of several layers are projected together"
    if not 1 <= feature_layer(config) <= vision.num_hidden_layers:
        return f"vision_feature_layer {config.vision_feature_layer} names no block's output"
    return None


def feature_layer(config: Any) -> int:
    """How many blocks are run: what `vision_feature_layer` means, counted from the front."""
    layer = config.vision_feature_layer
    return int(layer if layer >= 0 else layer + config.vision_config.num_hidden_layers + 1)


def measure_colours(image_processor: Any, side: int) -> Colours | str:
    """Finds scale and normalisation by black and white pictures; or why llama.cpp cannot do the same."""
    black, white = (pixels(image_processor, [Image.new("RGB", (side, side), (c, c, c))]) for c in (0, 255))
    if tuple(black.shape) != (1, 3, side, side):
        return (
            f"llama.cpp shows this tower squares of {side} pixels, the processor makes {tuple(black.shape)}"
        )
    low, high = black.double().mean(dim=(0, 2, 3)), white.double().mean(dim=(0, 2, 3))
    flat = all(float(colour.std(dim=(2, 3)).max()) < 1e-5 for colour in (black, white))
    if not flat or not bool((high - low > 1e-6).all()):
        return "the image processor does more than resize, scale and normalise"
    std = 1 / (high - low)
    return Colours(tuple((-low * std).tolist()), tuple(std.tolist()), side)


def tower_names(names: Any, blocks: int, *, square_ffn: bool) -> tuple[dict[str, str], set[str]]:
    """Where the tensors of a tower go, and which lie behind the feature layer.

    Args:
        names: of the tower's tensors.
        blocks: how many are run.
        square_ffn: feed-forward layers are as wide as the model. clip.cpp tells old files, whose `ffn_up` and
            `ffn_down` have each other's names, by their shapes, and takes these for such.

    Returns:
        `{tensor: name in the file}` and the set of those left out. A tensor in neither is unknown.
    """
    swap = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"} if square_ffn else {}
    gguf_names, left_out = {}, set()
    for name in names:
        if name in ONCE:
            gguf_names[name] = ONCE[name]
        elif name.startswith(BEHIND):
            left_out.add(name)
        elif name.startswith(BLOCKS):
            number, _, rest = name.removeprefix(BLOCKS).partition(".")
            module, _, kind = rest.rpartition(".")
            if int(number) >= blocks:
                left_out.add(name)
            elif module in IN_BLOCKS:
                role = IN_BLOCKS[module]
                gguf_names[name] = f"v.blk.{number}.{swap.get(role, role)}.{kind}"
    return gguf_names, left_out


def projector_names(names: Any) -> dict[str, str]:
    """Where the tensors of a projector go."""
    pairs = ((name, *name.rpartition(".")[::2]) for name in names)
    return {name: f"{PROJECTOR[module]}.{kind}" for name, module, kind in pairs if module in PROJECTOR}


def zero_biases(gguf_names: dict[str, str], rows: dict[str, int]) -> dict[str, torch.Tensor]:
    """Biases that the graph always adds and a projector without any lacks; `rows` by weight in the file."""
    wanted = {f"{layer}.bias": f"{layer}.weight" for layer in PROJECTOR.values()}
    have = set(gguf_names.values())
    return {bias: torch.zeros(rows[weight]) for bias, weight in wanted.items() if bias not in have}
