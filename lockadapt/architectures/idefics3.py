"""Idefics3 (arXiv 2408.12637): SigLIP's patches merged into fewer, wider tokens; one linear projector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    Idefics3VisionConfig,
)
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionEmbeddings, Idefics3VisionTransformer

from lockadapt.architectures.assembly import Assembly, Fusion, Ingredients
from lockadapt.architectures.base import Architecture, ImageSpan, Inputs, ModelLayout, Positions
from lockadapt.architectures.bridge import join, projector_features
from lockadapt.architectures.projectors import normal_
from lockadapt.errors import AssemblyError
from lockadapt.models.embeddings import image_token_id
from lockadapt.models.quiet import quiet
from lockadapt.models.sources import some, tolerance
from lockadapt.models.towers import TowerFacts

LAYOUT = ModelLayout(
    tower="model.vision_model", llm="model.text_model", projector=("model.connector",), head="lm_head"
)

SHARED = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels"),
    *("image_size", "patch_size", "hidden_act", "layer_norm_eps", "attention_dropout"),
)
"""Config fields that mean the same in SigLIP and in Idefics3's tower."""

READ_IN_TRAINING = "gradient_checkpointing"
"""An attribute of the LLM's body that the stock forward pass reads, in training mode only."""

UNUSED = "head."
"""SigLIP's attention pooling, which stands behind the features that Idefics3 reads."""

MARKERS = {
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}
"""What the stock processor writes around images, and what it adds to every tokenizer."""


@torch.no_grad()
def initialise(projector: Any, generator: torch.Generator) -> None:
    """The one matrix from N(0, 1 / inputs)."""
    normal_(projector.modality_projection.proj, generator)


PIXEL_SHUFFLE_LINEAR = Fusion(
    "pixel-shuffle-linear",
    "linear",
    initialise,
    first="modality_projection.proj",  # it has no bias, so deviations are folded in, but no mean
    scaled="modality_projection.proj",
    depth=1,
    tokenwise=False,
    factor=2,
)
"""One matrix without a bias over merged patches."""


def tower(ingredients: Ingredients, fusion: Fusion, pixel_values: Tensor | None) -> Any:
    """The SigLIP tower as Idefics3 has it, around the same tensors; see `Assembly.tower`.

    Args:
        ingredients: with the SigLIP tower.
        fusion: not asked.
        pixel_values: of an image that both towers must see alike, or None.

    Returns:
        The tower.

    Raises:
        AssemblyError: it is no SigLIP, its patches would get other positions, or its features differ.
    """
    source, where = ingredients.tower, ingredients.where
    name = type(source).__name__
    if lacking := [field for field in SHARED if not hasattr(source.config, field)]:
        raise _cannot(name, f"no {some(lacking)} in its config", where)
    config: Any = Idefics3VisionConfig(**{field: getattr(source.config, field) for field in SHARED})
    config.dtype = source.config.dtype
    with torch.device("meta"), quiet():
        made: Any = Idefics3VisionTransformer(config)
    weights = {key: tensor for key, tensor in source.state_dict().items() if not key.startswith(UNUSED)}
    theirs = made.state_dict()
    if odd := {
        key
        for key in theirs.keys() | weights.keys()
        if key not in theirs or key not in weights or theirs[key].shape != weights[key].shape
    }:
        raise _cannot(name, f"other weights than SigLIP ({some(odd)})", where)
    grid = config.image_size // config.patch_size
    if not keeps_positions(grid):
        raise AssemblyError(
            f"Idefics3ForConditionalGeneration computes positions in floating point, which gives patches of "
            f"a grid of {grid} x {grid} the positions of others",
            where=where,
            fix="give another image_size (grids of 14, 16, 24, 27 and 32 are right), or the fusion "
            "pixel-shuffle",
        )
    made.load_state_dict(weights, assign=True)
    made.eval().requires_grad_(False)
    if pixel_values is not None:
        _prove(source, made, pixel_values, where)
    return made


@torch.no_grad()
def keeps_positions(grid: int) -> bool:
    """Whether the stock class gives every patch of a square grid its own position, in reading order.

    Args:
        grid: patches on a side.

    Returns:
        False where rounding puts a patch into its neighbour's bucket.
    """
    config = Idefics3VisionConfig(
        hidden_size=2, num_attention_heads=1, image_size=grid, patch_size=1, num_channels=1
    )
    embeddings, seen = Idefics3VisionEmbeddings(config), list[Tensor]()
    embeddings.position_embedding.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    embeddings(torch.zeros(1, 1, grid, grid), torch.ones(1, grid, grid, dtype=torch.bool))
    return torch.equal(seen[0].flatten(), torch.arange(grid * grid))


def build(ingredients: Ingredients, fusion: Fusion, seed: int) -> Any:
    """See `Assembly.build`."""
    text = ingredients.llm.config
    text.tie_word_embeddings = ingredients.text.keeps_tie
    settings = {
        "text_config": text,
        "vision_config": ingredients.tower.config,
        "image_token_id": image_token_id(ingredients.tokenizer),
        "scale_factor": ingredients.factor,
        "tie_word_embeddings": ingredients.text.keeps_tie,
        "pad_token_id": ingredients.tokenizer.pad_token_id,
    }
    config = Idefics3Config(**settings)
    return join(Idefics3ForConditionalGeneration, config, ingredients, fusion, seed, LAYOUT)


def processor(ingredients: Ingredients, template: str) -> Any:
    """The stock processor without tiles: one resize of the whole image to the tower's square."""
    own, vision = ingredients.image_processor, ingredients.vision
    colours = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "resample")
    images = Idefics3ImageProcessorPil(
        **{name: getattr(own, name) for name in colours if getattr(own, name, None) is not None},
        do_convert_rgb=True,
        do_resize=False,  # this one keeps proportions; without tiles the square is made in any case
        size={"longest_edge": vision.image_size},
        do_image_splitting=False,
        max_image_size={"longest_edge": vision.image_size},
    )
    tokens = vision.tokens // ingredients.factor**2
    return Idefics3Processor(images, ingredients.tokenizer, image_seq_len=tokens, chat_template=template)


def refuse(llm: Any, tower: Any) -> str | None:
    """See `Assembly.refuse`. OPT keeps what the forward pass reads in its decoder, one level too deep."""
    body = llm.base_model
    if not hasattr(body, READ_IN_TRAINING):
        return f"its forward pass reads `{READ_IN_TRAINING}` in training, which {type(body).__name__} has not"
    return None


def projected(output: Any, vision: TowerFacts) -> Tensor:
    """The last hidden state, behind the tower's last norm."""
    return output.last_hidden_state


def framed_span(processor: Any) -> ImageSpan:
    """Two markers stand before an image's tokens, and one behind them."""
    around = processor.fake_image_token
    return ImageSpan(
        processor.image_token, processor.image_seq_len, around + processor.global_image_tag, around
    )


def in_one_row(pixel_values: Tensor) -> dict[str, Tensor]:
    """The stock forward reads (rows, images of a row, channels, side, side); such stay as they are."""
    return {"pixel_values": pixel_values if pixel_values.ndim == 5 else pixel_values[None]}


def _prove(source: Any, made: Any, pixel_values: Tensor, where: str) -> None:
    values = pixel_values.to(source.device, source.dtype)
    grid = made.config.image_size // made.config.patch_size
    with torch.no_grad(), quiet():
        expected = source(values).last_hidden_state
        everything = torch.ones(len(values), grid, grid, dtype=torch.bool, device=values.device)
        features = made(values, patch_attention_mask=everything).last_hidden_state
    difference = float((expected - features).abs().max())
    if not difference <= tolerance(source.dtype, expected):
        raise _cannot(type(source).__name__, f"features that differ by up to {difference:.3g}", where)


def _cannot(kind: str, what: str, where: str) -> AssemblyError:
    return AssemblyError(
        f"{kind} has {what}, so Idefics3 cannot use it as its tower",
        where=where,
        fix="give a SigLIP or SigLIP 2 tower of fixed resolution, or the fusion pixel-shuffle, which takes "
        "other towers",
    )


IDEFICS3 = Architecture(
    model_class=Idefics3ForConditionalGeneration,
    config_class=Idefics3Config,
    layout=LAYOUT,
    inputs=Inputs(
        Idefics3Processor,
        framed_span,
        uniform=lambda processor: not processor.image_processor.do_image_splitting,
        shown=in_one_row,
        by_value=True,
    ),
    assemble=Assembly(
        fusions={PIXEL_SHUFFLE_LINEAR.name: PIXEL_SHUFFLE_LINEAR},
        fusion_of=lambda config: PIXEL_SHUFFLE_LINEAR,
        towers=("tokens",),
        projected=projected,
        build=build,
        processor=processor,
        tower=tower,
        special_tokens=MARKERS,
        refuse=refuse,
    ),
    features=projector_features(pack=list, layout=LAYOUT),
    positions=Positions(),
    settings=("image_token_id", "scale_factor"),
)
