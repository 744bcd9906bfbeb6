"""Loads a vision tower and runs it to see what it returns: tokens or feature maps, how many, how wide."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedModel

from lockadapt.errors import AssemblyError
from lockadapt.models.finite import require_finite
from lockadapt.models.model_folder import check_described_size
from lockadapt.models.preprocessing import load_image_processor, pixels
from lockadapt.models.quiet import quiet
from lockadapt.models.sources import Source, check_unexpected, find, loading, some

FeatureLayer = int | tuple[int, ...]
"""A hidden layer of a tower, or several whose channels are read side by side."""


@dataclass(frozen=True)
class LoadedTower:
    """A vision model in evaluation mode, frozen; its image processor; checkpoint keys unused and lacking."""

    model: PreTrainedModel
    image_processor: Any
    source: Source
    unexpected: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class TowerFacts:
    """What a tower was measured to return for a square image of `image_size` pixels.

    `tokens` counts what reaches the projector. For token towers `extra_tokens` counts what the tower puts
    beside the patches (class token, registers); the first of them is dropped. `patch_size` is what the
    processor divides the side by: the patch of a ViT, the total stride of a CNN. `feature_layer` is
    the hidden layer that is projected, or several, whose channels stand side by side; `hidden_size` is that
    of one.
    """

    kind: Literal["tokens", "feature-map"]
    hidden_size: int
    tokens: int
    patch_size: int
    extra_tokens: int
    image_size: int
    feature_layer: FeatureLayer


def load_tower(tower: str | Path, dtype: torch.dtype) -> LoadedTower:
    """Loads a vision model from a folder or Hub id; of a two-tower checkpoint (CLIP, SigLIP) its vision part.

    Args:
        tower: folder or Hub id.
        dtype: of the weights.

    Returns:
        The tower and its image processor.

    Raises:
        SetupError: it does not exist or cannot be read.
        AssemblyError: it has no vision model.
        VerificationError: a weight is not finite.
    """
    source = find(tower, "tower")
    with loading(source, "tower"):
        config = AutoConfig.from_pretrained(source.name, **source.arguments)
    _check_known(getattr(config, "vision_config", None) or config, source)
    with loading(source, "tower"):
        if source.local:
            check_described_size(
                Path(source.name), lambda: AutoModel.from_config(copy.deepcopy(config)), "tower"
            )
        model, info = AutoModel.from_pretrained(
            source.name, dtype=dtype, use_safetensors=True, output_loading_info=True, **source.arguments
        )
    unexpected = check_unexpected(model, info["unexpected_keys"], "tower", source)
    require_finite(model, source.name)
    missing, prefix = sorted(info["missing_keys"]), ""
    if getattr(config, "vision_config", None) is not None:
        prefix, model = _vision_part(model, source)
        missing = [name.removeprefix(prefix) for name in missing if name.startswith(prefix)]
    if model.main_input_name != "pixel_values":
        raise AssemblyError(
            f"{type(model).__name__} does not take images",
            where=source.name,
            fix="give a vision model as tower",
        )
    return LoadedTower(
        model=model.eval().requires_grad_(False),
        image_processor=load_image_processor(source),
        source=source,
        unexpected=unexpected,
        missing=tuple(missing),
    )


@torch.no_grad()
def probe_tower(tower: LoadedTower, image_processor: Any, feature_layer: FeatureLayer) -> TowerFacts:
    """Runs the tower on noise and reads from the shapes what it is.

    Args:
        tower: as loaded.
        image_processor: one that makes squares (`square_processor`).
        feature_layer: the hidden layer of a token tower that is projected, or several; feature maps are
            always the last.

    Returns:
        What was measured.

    Raises:
        AssemblyError: it fails at this size, or returns what neither stock class reads, or the checkpoint
            lacks weights that the features depend on.
    """
    values = probe_pixels(image_processor).to(next(tower.model.parameters()).dtype)
    facts, features = tower_facts(tower, values, feature_layer)
    if not torch.equal(features, tower_facts(tower, values, feature_layer)[1]):
        raise AssemblyError(
            f"{type(tower.model).__name__} returns other features each time it sees an image: masked "
            "autoencoders hide patches at random",
            where=tower.source.name,
            fix="give the encoder's weights as a plain ViT, or another tower",
        )
    _check_missing(tower, values, features, facts)
    return facts


def tower_facts(tower: LoadedTower, values: Tensor, feature_layer: FeatureLayer) -> tuple[TowerFacts, Tensor]:
    """Reads what a tower is from its outputs' shapes; also for a tower without weights.

    Args:
        tower: as loaded.
        values: pixel values (2, channels, side, side) in the tower's dtype.
        feature_layer: as `probe_tower`.

    Returns:
        What it is; and its features, (2, tokens, channels) or (2, channels, height, width).

    Raises:
        AssemblyError: it fails at this size, or returns what neither stock class reads.
    """
    model, where, side = tower.model, tower.source.name, values.shape[-1]
    grids: list[tuple[int, int]] = []
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out: grids.append(tuple(out.shape[-2:])))
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    try:
        with quiet():
            output = model(values, output_hidden_states=True, return_dict=True)
    except Exception as error:
        raise AssemblyError(
            f"{type(model).__name__} cannot take images of {side} x {side}: {str(error).splitlines()[0]}",
            where=where,
            fix="leave `image_size` out, or choose one that the tower's position embeddings fit",
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    last = getattr(output, "last_hidden_state", None)
    if isinstance(last, Tensor) and len(last) != len(values):
        raise _unreadable(model, f"the features of {len(values)} images as {len(last)}, in one row", where)
    if isinstance(last, Tensor) and last.ndim == 4:
        if not isinstance(feature_layer, int):
            raise AssemblyError(
                f"{type(model).__name__} returns one feature map, and model.feature_layer lists several",
                where=where,
                fix="leave model.feature_layer out",
            )
        return _map_facts(model, last, side, where), last
    if isinstance(last, Tensor) and last.ndim == 3:
        return _token_facts(model, output, grids, side, feature_layer, where)
    raise _unreadable(model, "no last_hidden_state of three or four dimensions", where)


def hidden_state(output: Any, layers: FeatureLayer) -> Tensor:
    """What a tower's output has at a hidden layer, (images, tokens, channels); of several, side by side."""
    if isinstance(layers, int):
        state: Tensor = output.hidden_states[layers]
        return state
    return torch.cat([output.hidden_states[layer] for layer in layers], dim=-1)


def probe_pixels(image_processor: Any, seed: int = 0) -> Tensor:
    """Two images of noise as the image processor gives them, (2, channels, side, side), float32."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (2, 48, 48, 3), generator=generator, dtype=torch.uint8).numpy()
    return pixels(image_processor, [Image.fromarray(picture) for picture in noise])


def _check_known(config: Any, source: Source) -> None:
    """Refuse what `AutoModel` does not know: the stock classes build their tower from its config with it."""
    if type(config) not in MODEL_MAPPING:
        raise AssemblyError(
            f"Transformers' AutoModel builds no model from a {type(config).__name__}, and the stock classes "
            "build their tower with it",
            where=source.name,
            fix="choose another tower (CLIP, SigLIP, DINOv2 …)",
        )


def _vision_part(full: PreTrainedModel, source: Source) -> tuple[str, PreTrainedModel]:
    config = full.config.vision_config
    with torch.device("meta"), loading(source, "tower's vision part"):
        kind = type(AutoModel.from_config(config))
    for name, module in full.named_modules():
        if type(module) is kind:
            return (f"{name}." if name else ""), module
    held = next(
        (type(part).__name__ for part in full.modules() if getattr(part, "config", None) is config), ""
    )
    raise AssemblyError(
        f"{type(full).__name__} has no {kind.__name__} inside, which is what AutoModel builds from its "
        f"vision_config, but {held or 'another class'}",
        where=source.name,
        fix=f"save the vision part alone, as {kind.__name__}, or choose another tower",
    )


def _map_facts(model: PreTrainedModel, last: Tensor, side: int, where: str) -> TowerFacts:
    channels, height, width = (int(size) for size in last.shape[1:])
    if height != width:
        raise _unreadable(
            model, f"a feature map of {tuple(last.shape[1:])}, not channels first and square", where
        )
    # The processor counts (side // patch) squared; strides that round up make side // height the wrong patch.
    patch = next((size for size in range(side, 0, -1) if side // size == height), None)
    if patch is None:
        raise AssemblyError(
            f"{height} x {height} features of a {side} x {side} image are no multiple of any stride",
            where=where,
            fix="choose an `image_size` that is a multiple of the tower's stride",
        )
    if getattr(model.config, "hidden_size", None) is None:
        # FastVLM reads the width of its projector here, and CNN configs lack it.
        model.config.hidden_size = channels
    if model.config.hidden_size != channels:
        raise _unreadable(
            model, f"{channels} channels where its config says {model.config.hidden_size}", where
        )
    return TowerFacts("feature-map", channels, height * width, patch, 0, side, -1)


def _token_facts(
    model: PreTrainedModel,
    output: Any,
    grids: list[tuple[int, int]],
    side: int,
    layers: FeatureLayer,
    where: str,
) -> tuple[TowerFacts, Tensor]:
    states = getattr(output, "hidden_states", None)
    for layer in (layers,) if isinstance(layers, int) else layers:
        if states is None or not -len(states) <= layer < len(states):
            raise _unreadable(model, f"no hidden layer {layer} (it has {len(states or ())})", where)
        features = _tokens_at(model, states[layer], layer, where)
    total = int(features.shape[1])
    patches = max((h * w for h, w in grids if h == w and 0 <= total - h * w < 64), default=0)
    patches = patches or math.isqrt(total) ** 2
    extra = total - patches
    patch = side // math.isqrt(patches)
    if (side // patch) ** 2 != patches:
        raise _unreadable(
            model, f"{total} tokens, which is no square grid of patches of {side} pixels", where
        )
    width = int(features.shape[-1])
    facts = TowerFacts("tokens", width, total - min(extra, 1), patch, extra, side, layers)
    return facts, hidden_state(output, layers)


def _tokens_at(model: PreTrainedModel, features: Tensor, layer: int, where: str) -> Tensor:
    """A hidden state that is one of tokens as wide as the tower's config says."""
    width = getattr(model.config, "hidden_size", None)
    if features.ndim == 4:
        maps = tuple(features.shape[1:])
        raise _unreadable(model, f"tokens as its last state, but feature maps {maps} before it", where)
    if width is None:
        channels = int(features.shape[-1])
        raise _unreadable(model, f"tokens of {channels} channels, and its config names no hidden_size", where)
    if features.ndim != 3 or features.shape[-1] != width:
        raise _unreadable(
            model,
            f"{tuple(features.shape[1:])} at hidden layer {layer} where its config says {width} wide",
            where,
        )
    return features


def _check_missing(tower: LoadedTower, values: Tensor, before: Tensor, facts: TowerFacts) -> None:
    """Refuses lacking weights unless the features do not change with them (a pooler)."""
    parameters = dict(tower.model.named_parameters()) | dict(tower.model.named_buffers())
    for name in tower.missing:
        tensor = parameters.get(name)
        if tensor is not None and tensor.is_floating_point():
            tensor.fill_(0.37)
    if not tower.missing:
        return
    output = tower.model(values, output_hidden_states=True, return_dict=True)
    last = facts.kind == "feature-map"
    after = output.last_hidden_state if last else hidden_state(output, facts.feature_layer)
    if not torch.equal(before, after):
        raise AssemblyError(
            f"the tower's checkpoint lacks {some(tower.missing)}",
            where=tower.source.name,
            fix="use a complete vision checkpoint",
        )
    for name in tower.missing:
        if name in parameters:
            parameters[name].zero_()


def _unreadable(model: PreTrainedModel, what: str, where: str) -> AssemblyError:
    return AssemblyError(
        f"{type(model).__name__} returns {what}, which neither LLaVA nor FastVLM reads",
        where=where,
        fix="choose a ViT (CLIP, SigLIP, DINOv2 …) or a CNN (ConvNeXt, ResNet, MobileNet …), or another "
        "feature_layer",
    )
