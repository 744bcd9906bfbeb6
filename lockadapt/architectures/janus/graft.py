"""The stock Janus model around an LLM, a SigLIP tower and an image tokenizer: reads and generates images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    JanusVQVAEConfig,
)

from lockadapt.architectures.assembly import Fusion, Ingredients
from lockadapt.architectures.bridge import forget_origin, make_room, put_llm, same_structure
from lockadapt.architectures.janus.image_tokenizer import ImageTokenizer, janus_image_processor, unit_codebook
from lockadapt.architectures.janus.siglip import janus_tower, prove_tower
from lockadapt.architectures.projectors import normal_
from lockadapt.errors import AssemblyError
from lockadapt.models.embeddings import image_token_id
from lockadapt.models.quiet import quiet

IMAGE_BOUNDARY_TOKENS = {"boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
"""Special tokens that the stock processor of Janus puts around images, by the names that it knows them
under."""

GUIDANCE = 3.0
"""Default guidance scale of a grafted model. The stock class needs more than 1."""

HEAD_SCALE = 0.1
"""Size of the generation head's last weights: to a fresh head all image tokens are nearly equally likely."""

_PIXELS = ("image_mean", "image_std", "do_normalize", "do_rescale", "rescale_factor")


def graft(ingredients: Ingredients, fusion: Fusion, seed: int) -> Any:
    """Builds the stock `JanusForConditionalGeneration` around an LLM, a tower and an image tokenizer.

    The generation embeddings are the codebook, and stay it. Fresh are the projector, the generation aligner
    (its output as large as the LLM's embeddings) and the generation head (all image tokens nearly equally
    likely).

    Args:
        ingredients: the tower from `tower`; the image tokenizer's weights move into the result as well.
        fusion: of `FUSIONS`.
        seed: of all fresh weights.

    Returns:
        The model in evaluation mode.

    Raises:
        AssemblyError: the image tokenizer's grid is not the tower's, or the stock class would build another
            LLM.
    """
    llm, tower, image_tokenizer = ingredients.llm, ingredients.tower, ingredients.image_tokenizer
    text = ingredients.text
    check_grids(tower.config, image_tokenizer)
    llm.config.tie_word_embeddings = text.keeps_tie
    vq = JanusVQVAEConfig(
        **{
            **image_tokenizer.model.config.to_dict(),
            "projection_dim": text.hidden_size,
            "image_token_embed_dim": text.hidden_size,
            "num_hidden_layers": 2,
            "hidden_act": "gelu",
        }
    )
    config = JanusConfig(
        text_config=llm.config,
        vision_config=tower.config,
        vq_config=vq,
        image_token_id=image_token_id(ingredients.tokenizer),
        tie_word_embeddings=text.keeps_tie,
    )
    with torch.device("meta"), quiet():
        model: Any = JanusForConditionalGeneration(config)
    same_structure("tower", model.model.vision_model, tower)
    model.model.vision_model = tower
    put_llm(model, llm, text)
    weights = {name: tensor.to(llm.dtype) for name, tensor in image_tokenizer.model.state_dict().items()}
    model.model.vqmodel.load_state_dict(weights, assign=True)
    for name in ("aligner", "generation_embeddings", "generation_aligner", "generation_head"):
        make_room(getattr(model.model, name), llm)
    generator = torch.Generator().manual_seed(seed)
    fusion.initialise(model.model.aligner, generator)
    if llm.device.type != "meta":
        _fresh_generation(model, ingredients.text_rms, generator)
    forget_origin(llm.dtype, model.config, llm.config, tower.config, model.model.vqmodel.config)
    return model.eval()


def tower(ingredients: Ingredients, fusion: Fusion, pixel_values: Tensor | None) -> Any:
    """The SigLIP tower as Janus has it; see `Assembly.tower`."""
    made = janus_tower(ingredients.tower, ingredients.text.hidden_size, fusion.depth, ingredients.where)
    if pixel_values is not None:
        prove_tower(ingredients.tower, made, pixel_values, ingredients.where)
    check_grids(made.config, ingredients.image_tokenizer)
    return made


def check_grids(tower_config: Any, image_tokenizer: ImageTokenizer) -> None:
    """Checks that tower and image tokenizer have the same grid: Janus's config has one for both.

    Args:
        tower_config: of the SigLIP tower.
        image_tokenizer: loaded.

    Raises:
        AssemblyError: they are not.
    """
    tower_grid = tower_config.image_size // tower_config.patch_size
    grid = image_tokenizer.model.config.num_patches
    if grid != tower_grid:
        raise AssemblyError(
            f"the image tokenizer has a grid of {grid} x {grid} image tokens, the tower one of {tower_grid} "
            f"x {tower_grid} "
            "patches, and Janus has one size for both",
            where=image_tokenizer.name,
            fix=f"train an image tokenizer with --grid {tower_grid}, or give another tower",
        )


def janus_processor(ingredients: Ingredients, chat_template: str) -> Any:
    """The stock `JanusProcessor`, which prepares images for the tower and turns pixels into pictures.

    Args:
        ingredients: the pixels of the image tokenizer must have the scale of the tower's, because the stock
            processor has one for both.
        chat_template: of the processor.

    Returns:
        The processor.

    Raises:
        AssemblyError: they have not.
    """
    image_tokenizer = ingredients.image_tokenizer
    settings = ingredients.image_processor.to_dict()
    own = image_tokenizer.image_processor.to_dict() if image_tokenizer.image_processor is not None else None
    different = [name for name in _PIXELS if own is not None and own.get(name) != settings.get(name)]
    if different:
        name = different[0]
        raise AssemblyError(
            f"the image tokenizer was trained with {name} {own[name] if own else None}, the tower wants "
            f"{settings.get(name)}, and Janus has one image processor for both",
            where=image_tokenizer.name,
            fix="train the image tokenizer with --tower, which gives it the tower's scale",
        )
    kept = {name: settings[name] for name in (*_PIXELS, "resample") if settings.get(name) is not None}
    side = settings["size"]["height"]
    return JanusProcessor(
        janus_image_processor(side, **kept),
        ingredients.tokenizer,
        chat_template=chat_template,
        num_image_tokens=ingredients.vision.tokens,
    )


def set_image_generation(model: Any, tokenizer: Any) -> None:
    """Sets what the stock `generate(generation_mode="image")` needs; ids are the tokenizer's, in place.

    It compares ids with `bos_token_id` and `boi_token_id` to find what an unconditional prompt keeps, and
    fills the rest with `pad_token_id`.
    """
    before = model.generation_config.to_diff_dict()
    # A config that says it was made from a model's keeps nothing that it does not know, so this is a new one.
    known = {key: value for key, value in before.items() if not key.startswith(("_", "transformers_"))}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "pad")}
    generation = {"boi_token_id": tokenizer.convert_tokens_to_ids(tokenizer.boi_token)}
    model.generation_config = GenerationConfig(
        **{**known, **ids, "guidance_scale": GUIDANCE, "generation_kwargs": generation}
    )


@torch.no_grad()
def _fresh_generation(model: Any, text_rms: float, generator: torch.Generator) -> None:
    body = model.model
    unit_codebook(body.vqmodel)
    codebook: Tensor = body.vqmodel.quantize.embedding.weight
    body.generation_embeddings.weight.copy_(codebook)
    aligner, head = body.generation_aligner, body.generation_head
    layers = [aligner.fc1, *aligner.hidden_layers]
    for layer in (*layers, head.proj_out, head.vision_head):
        normal_(layer, generator)
    # Rows of length 1: their entries are as much smaller than unit variance as the row is long.
    aligner.fc1.weight.mul_(codebook.shape[1] ** 0.5)
    size = aligner(codebook).double().square().mean().sqrt()
    layers[-1].weight.mul_(text_rms / float(size))
    head.vision_head.weight.mul_(HEAD_SCALE)
