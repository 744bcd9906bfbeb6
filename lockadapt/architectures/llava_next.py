"""LLaVA-NeXT (AnyRes tiles): an image is seen whole and in tiles, so that small things keep their pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from lockadapt.architectures.assembly import Assembly, Fusion, Ingredients
from lockadapt.architectures.base import SETTINGS, Architecture, Features, Inputs, ModelLayout, Positions
from lockadapt.architectures.bridge import common_config, entrance, feature_strategy, join
from lockadapt.architectures.kept import ImageRecord, RaggedFeatures
from lockadapt.architectures.llava import projected
from lockadapt.architectures.projectors import MLP

PROJECTOR, NEWLINE = "model.multi_modal_projector", "model.image_newline"
LAYOUT = ModelLayout(
    tower="model.vision_tower", llm="model.language_model", projector=(PROJECTOR, NEWLINE), head="lm_head"
)

TILES = Fusion(
    "tiles",
    MLP.activation,
    MLP.initialise,
    first=MLP.first,
    scaled=MLP.scaled,
    depth=MLP.depth,
    max_tiles=4,
)
"""`mlp` on every token of the whole image and of its tiles; a trained newline behind each row of tokens."""


def build(ingredients: Ingredients, fusion: Fusion, seed: int) -> Any:
    """See `Assembly.build`."""
    config = LlavaNextConfig(
        **common_config(ingredients),
        image_grid_pinpoints=pinpoints(ingredients),
        projector_hidden_act=fusion.activation,
        image_seq_length=ingredients.vision.tokens,
    )
    model = join(LlavaNextForConditionalGeneration, config, ingredients, fusion, seed, LAYOUT)
    model.model.image_newline = newline(ingredients, seed)
    return model


def newline(ingredients: Ingredients, seed: int) -> torch.nn.Parameter:
    """A fresh newline (hidden,): it stands among word embeddings, so it is drawn as large as they are."""
    llm = ingredients.llm
    fresh = torch.empty(ingredients.text.hidden_size, dtype=llm.dtype, device=llm.device)
    if not fresh.is_meta:
        drawn = torch.randn(fresh.shape, generator=torch.Generator().manual_seed(seed))
        fresh.copy_(drawn * ingredients.text_rms)
    return torch.nn.Parameter(fresh)


def pinpoints(ingredients: Ingredients) -> list[list[int]]:
    """The sizes in pixels that images may be cut into, [height, width]."""
    side = ingredients.vision.image_size
    return [[rows * side, columns * side] for rows, columns in ingredients.grids]


def tile_processor(ingredients: Ingredients) -> Any:
    """The stock image processor: no crop, and the tower's colours."""
    own, vision = ingredients.image_processor, ingredients.vision
    colours = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "resample")
    side = {"height": vision.image_size, "width": vision.image_size}
    return LlavaNextImageProcessorPil(
        **{name: getattr(own, name) for name in colours if getattr(own, name, None) is not None},
        do_convert_rgb=True,
        size=side,
        crop_size=side,
        do_center_crop=False,
        image_grid_pinpoints=pinpoints(ingredients),
    )


def processor(ingredients: Ingredients, template: str) -> Any:
    """The stock processor, whose count is that of the class's features."""
    vision = ingredients.vision
    return LlavaNextProcessor(
        tile_processor(ingredients),
        ingredients.tokenizer,
        chat_template=template,
        patch_size=vision.patch_size,
        num_additional_image_tokens=vision.extra_tokens,
        vision_feature_select_strategy=feature_strategy(vision),
    )


def example(ingredients: Ingredients, pixel_values: Tensor) -> dict[str, Tensor]:
    """Each square as an image that is cut into the first grid, every tile of which is the square itself."""
    rows, columns = ingredients.grids[0]
    side, count = pixel_values.shape[-1], 1 + rows * columns
    tiles = pixel_values[:, None].expand(-1, count, -1, -1, -1).contiguous()
    return {
        "pixel_values": tiles,
        "image_sizes": torch.tensor([[rows * side, columns * side]] * len(pixel_values)),
    }


def tile_counts(config: Any, image_sizes: Tensor) -> tuple[list[tuple[int, int]], list[int]]:
    """Of each image its size in pixels, (height, width), and how many squares it becomes."""
    sizes = [(int(height), int(width)) for height, width in image_sizes.tolist()]
    side = config.vision_config.image_size
    return sizes, [image_size_to_num_patches(size, config.image_grid_pinpoints, side) for size in sizes]


@torch.no_grad()
def take(model: Any, images: Mapping[str, Tensor]) -> Sequence[ImageRecord]:
    """What enters the projector, of the whole image and of its tiles in the order of reading."""
    sizes, counts = tile_counts(model.config, images["image_sizes"])
    tiles = entrance(model, PROJECTOR, images).split(counts)
    return [
        ImageRecord({"tiles": image.flatten(0, 1)}, {"size": size, "tiles": (count,)})
        for image, size, count in zip(tiles, sizes, counts, strict=True)
    ]


def give(model: Any, features: RaggedFeatures, scales: Tensor | None) -> dict[str, Any]:
    """Kept tiles through the projector, put together and given newlines by the stock class itself."""
    body, config = model.model, model.config
    weight = next(body.multi_modal_projector.parameters())
    counts = [facts["tiles"][0] for facts in features.facts]
    images = features.to(weight.device).level("tiles", weight.dtype)
    tiles = torch.cat([image.unflatten(0, (count, -1)) for image, count in zip(images, counts, strict=True)])
    packed, _ = body.pack_image_features(
        body.multi_modal_projector(tiles).split(counts),
        torch.tensor([facts["size"] for facts in features.facts]),
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        image_newline=body.image_newline,
    )
    return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=packed)}}


LLAVA_NEXT = Architecture(
    model_class=LlavaNextForConditionalGeneration,
    config_class=LlavaNextConfig,
    layout=LAYOUT,
    inputs=Inputs(LlavaNextProcessor, None, stock=True),
    assemble=Assembly(
        fusions={TILES.name: TILES},
        fusion_of=lambda config: TILES,
        towers=("tokens",),
        projected=projected,
        build=build,
        processor=processor,
        example=example,
        several_layers=True,
    ),
    features=Features(take, give, ragged=True),
    positions=Positions(),
    settings=(*SETTINGS, "image_grid_pinpoints"),
)
