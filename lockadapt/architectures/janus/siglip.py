"""A SigLIP tower as the vision tower of Janus: the same weights by other names, proved by running both."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import JanusVisionConfig, JanusVisionModel, PreTrainedModel

from lockadapt.errors import AssemblyError
from lockadapt.models.quiet import quiet
from lockadapt.models.sources import some, tolerance

SHARED = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_channels", "image_size", "patch_size"),
    *("hidden_act", "layer_norm_eps", "attention_dropout"),
)
"""Config fields that mean the same in both classes."""

UNUSED = "head."
"""SigLIP's attention pooling, which stands behind the features that Janus reads."""


def janus_tower(tower: PreTrainedModel, projection_dim: int, depth: int, where: str) -> Any:
    """The stock `JanusVisionModel` that computes what a SigLIP tower computes, around the very same tensors.

    Janus's tower is SigLIP's without the pooling head: `out_proj` is called `projection_layer`. Whether that
    holds for the given tower is not looked up by its name: names and shapes of all tensors must fit, and
    `prove_tower` runs both.

    Args:
        tower: a vision model in evaluation mode.
        projection_dim: width of the LLM, which Janus keeps in the tower's config.
        depth: layers of the projector, likewise.
        where: names the tower in messages.

    Returns:
        A `JanusVisionModel` in evaluation mode, frozen, in the tower's dtype. It shares the tower's memory.

    Raises:
        AssemblyError: the tower is of another kind; the message says what does not fit.
    """
    weights = {
        name.replace(".out_proj.", ".projection_layer."): tensor
        for name, tensor in tower.state_dict().items()
        if not name.startswith(UNUSED)
    }
    config = janus_vision_config(tower.config, projection_dim, depth, where)
    with torch.device("meta"), quiet():
        model: Any = JanusVisionModel(config)
    _same_tensors(tower, model.state_dict(), weights, where)
    model.load_state_dict(weights, assign=True)
    # The one buffer that is no part of a state dict.
    positions = model.embeddings.num_positions
    model.embeddings.position_ids = torch.arange(positions, device=tower.device).expand(1, -1)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def prove_tower(tower: Any, model: Any, values: Tensor, where: str) -> None:
    """Checks that a tower and the Janus tower made of it return the same for pixels (images, 3, side, side).

    Args:
        tower: the SigLIP tower.
        model: the Janus tower made of it.
        values: pixel values.
        where: the tower, for messages.

    Raises:
        AssemblyError: they do not, or one of them cannot take such images.
    """
    values = values.to(tower.device, tower.dtype)
    try:
        with quiet():
            expected = tower(values).last_hidden_state
            features = model(values).last_hidden_state
    except Exception as error:
        reason = f"a forward pass that fails ({str(error).splitlines()[0]})"
        raise _cannot(type(tower).__name__, reason, where) from error
    difference = float((expected - features).abs().max()) if expected.shape == features.shape else math.nan
    if not difference <= tolerance(tower.dtype, expected):
        raise _cannot(type(tower).__name__, f"features that differ by up to {difference:.3g} in Janus", where)


def janus_vision_config(config: Any, projection_dim: int, depth: int, where: str) -> JanusVisionConfig:
    """Makes the config of the Janus tower for that of a SigLIP one.

    Args:
        config: of the SigLIP tower.
        projection_dim: the LLM's hidden size.
        depth: of the projector.
        where: the tower, for messages.

    Returns:
        The config.

    Raises:
        AssemblyError: it lacks fields, or the image is no square of whole patches.
    """
    names = (*SHARED, "intermediate_size")
    lacking = [name for name in names if not hasattr(config, name)]
    if lacking:
        raise _cannot(str(config.model_type), f"no {some(lacking)} in its config", where)
    side, patch = config.image_size, config.patch_size
    if not (isinstance(side, int) and isinstance(patch, int) and side % patch == 0):
        raise _cannot(str(config.model_type), f"images of {side} in patches of {patch}", where)
    made = JanusVisionConfig(
        **{name: getattr(config, name) for name in SHARED},
        mlp_ratio=_ratio(config.hidden_size, config.intermediate_size),
        attention_bias=True,
        projection_dim=projection_dim,
        depth=depth,
        num_image_tokens=(side // patch) ** 2,
    )
    made.dtype = config.dtype
    return made


def _ratio(hidden: int, inner: int) -> float:
    """The number r for which `int(hidden * r) == inner`: Janus keeps a ratio, and rounds down."""
    ratio = inner / hidden
    while int(hidden * ratio) < inner:
        ratio = math.nextafter(ratio, math.inf)
    return ratio


def _same_tensors(tower: Any, theirs: dict[str, Tensor], ours: dict[str, Tensor], where: str) -> None:
    odd = sorted(
        name
        for name in theirs.keys() | ours.keys()
        if name not in theirs or name not in ours or theirs[name].shape != ours[name].shape
    )
    if odd:
        raise _cannot(type(tower).__name__, f"other weights than SigLIP ({some(odd)})", where)


def _cannot(kind: str, what: str, where: str) -> AssemblyError:
    return AssemblyError(
        f"{kind} has {what}, so Janus cannot use it as its tower",
        where=where,
        fix="give a SigLIP or SigLIP 2 tower of fixed resolution, or leave the image tokenizer out",
    )
