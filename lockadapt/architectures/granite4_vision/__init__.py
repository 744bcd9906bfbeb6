"""Granite 4 Vision: queries read an image window by window (after the Q-Former, arXiv 2301.12597), in tiles.

It holds what BLIP-2 cannot: towers without a class token or with a norm before their blocks (CLIP, SigLIP),
before a plain Llama, Mistral or Qwen2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Granite4VisionConfig, Granite4VisionForConditionalGeneration, Granite4VisionProcessor
from transformers.models.granite4_vision.modeling_granite4_vision import Granite4VisionImageFeaturesOutput

from lockadapt.architectures.assembly import Assembly
from lockadapt.architectures.base import Architecture, Features, Inputs, ModelLayout, Positions
from lockadapt.architectures.granite4_vision.build import build, processor, refuse
from lockadapt.architectures.granite4_vision.windows import WINDOWS, queries
from lockadapt.architectures.kept import ImageRecord, RaggedFeatures
from lockadapt.architectures.llava import projected
from lockadapt.architectures.llava_next import example, tile_counts
from lockadapt.architectures.standardise import channel_statistics

PROJECTORS, SPATIAL, NEWLINE = "model.layerwise_projectors", "model.spatial_projectors", "model.image_newline"
LAYOUT = ModelLayout(
    tower="model.vision_tower",
    llm="model.language_model",
    projector=(PROJECTORS, NEWLINE),
    head="lm_head",
)


def locate(model: Any) -> ModelLayout:
    """Where the parts are: checkpoints may use spatial samples, which are then read beside the layers."""
    used = (SPATIAL,) if model.config.spatial_target_layers else ()
    return ModelLayout(
        tower=LAYOUT.tower, llm=LAYOUT.llm, projector=(PROJECTORS, *used, NEWLINE), head=LAYOUT.head
    )


def _readers(model: Any) -> list[tuple[str, int, Any]]:
    """Name of what is read (the tower's layer), the LLM's layer that gets it, and the projector between."""
    config, body = model.config, model.model
    layers = config.deepstack_layer_map
    pairs = [*layers, *((config.spatial_vision_layer, target) for target in config.spatial_target_layers)]
    projectors = [*body.layerwise_projectors, *body.spatial_projectors]
    return [
        (str(source), target, reader) for (source, target), reader in zip(pairs, projectors, strict=False)
    ]


@torch.no_grad()
def take(model: Any, images: Mapping[str, Tensor]) -> Sequence[ImageRecord]:
    """What enters the projectors, of the whole image and of its tiles in the order of reading."""
    seen: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        return lambda _, given: seen.__setitem__(name, given[0].detach())

    handles = [reader.register_forward_pre_hook(hook(name)) for name, _, reader in _readers(model)]
    try:
        model.model.get_image_features(**images)
    finally:
        for handle in handles:
            handle.remove()
    sizes, counts = tile_counts(model.config, images["image_sizes"])
    split = {name: tensor.split(counts) for name, tensor in seen.items()}
    return [
        ImageRecord(
            {name: tensors[number].flatten(0, 1) for name, tensors in split.items()},
            {"size": sizes[number], "tiles": (counts[number],)},
        )
        for number in range(len(counts))
    ]


def give(model: Any, features: RaggedFeatures, scales: Tensor | None) -> dict[str, Any]:
    """Kept tiles through the projectors, put together and given newlines by the stock class itself."""
    body, weight = model.model, model.model.image_newline
    counts = [facts["tiles"][0] for facts in features.facts]
    sizes = torch.tensor([facts["size"] for facts in features.facts])
    features = features.to(weight.device)
    shown = []
    for name, target, reader in _readers(model):
        images = features.level(name, weight.dtype)
        tiles = [image.unflatten(0, (count, -1)) for image, count in zip(images, counts, strict=True)]
        packed = body.pack_image_features(
            reader(torch.cat(tiles)).split(counts),
            sizes,
            vision_feature_select_strategy=model.config.vision_feature_select_strategy,
            image_newline=weight,
        )
        shown.append((target, packed))
    return {"mm_encoder_outputs": {"image": Granite4VisionImageFeaturesOutput(deepstack_features=shown)}}


@torch.no_grad()
def calibrate(model: Any, batches: Iterable[Tensor], embedding_rms: float) -> int:
    """See `Assembly.calibrate`: what the norm gives is standardised by channel, in its own scale and shift.

    Tokens are brought to the size of words at the other end, measured on the first image.
    """
    projector = model.model.layerwise_projectors[0]
    side = projector.image_side
    first: list[Tensor] = []

    def normed() -> Iterator[Tensor]:
        for batch in batches:
            squares = batch.reshape(-1, side * side, batch.shape[-1])
            first.extend([] if first else [squares])
            yield projector.norm(squares.to(projector.norm.weight))

    images, mean, deviation = channel_statistics(normed())
    projector.norm.weight.copy_(1 / deviation)
    projector.norm.bias.copy_(-mean / deviation)
    size = float(projector(first[0].to(projector.norm.weight)).double().square().mean().sqrt())
    for tensor in projector.out_linear.parameters():
        tensor.mul_(embedding_rms / size if size > 0 else 1.0)
    return images


GRANITE4_VISION = Architecture(
    model_class=Granite4VisionForConditionalGeneration,
    config_class=Granite4VisionConfig,
    layout=LAYOUT,
    inputs=Inputs(Granite4VisionProcessor, None, stock=True),
    assemble=Assembly(
        fusions={WINDOWS.name: WINDOWS},
        fusion_of=lambda config: WINDOWS,
        towers=("tokens",),
        projected=projected,
        build=build,
        processor=processor,
        calibrate=calibrate,
        refuse=refuse,
        example=example,
        queries=queries,
    ),
    features=Features(take, give, ragged=True),
    positions=Positions(),
    settings=(
        *("image_token_id", "vision_feature_select_strategy", "downsample_rate", "image_grid_pinpoints"),
        *("deepstack_layer_map", "spatial_vision_layer", "spatial_target_layers"),
    ),
    locate=locate,
)
