"""Builds the model of a run without its weights: fake tensors of the right shapes, from configs alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from lockadapt.architectures.assemble import check_grid, put_together, special_tokens, writes_images
from lockadapt.architectures.assembly import Ingredients
from lockadapt.architectures.choose import Wish, choices, choose
from lockadapt.architectures.janus.image_tokenizer import load_image_tokenizer
from lockadapt.architectures.load import load_model
from lockadapt.errors import AssemblyError
from lockadapt.models.embeddings import load_tokenizer
from lockadapt.models.llms import auto_class, llm_config, llm_structure
from lockadapt.models.preprocessing import load_image_processor, square_processor
from lockadapt.models.query_tokens import add_query_tokens
from lockadapt.models.sources import find, loading
from lockadapt.models.tower_size import can_change
from lockadapt.models.towers import LoadedTower, probe_pixels, tower_facts

META = torch.device("meta")


@dataclass(frozen=True)
class Blueprint:
    """A Transformers model on torch's meta device (shapes, no memory), and its real processor."""

    model: Any
    processor: Any


def assembled_blueprint(
    llm: str | Path,
    tower: str | Path,
    dtype: torch.dtype,
    *,
    fusion_name: str = "mlp",
    image_size: int | None = None,
    feature_layer: int | Sequence[int] = -2,
    image_tokenizer: str | Path | None = None,
    query_tokens: int = 0,
    factor: int | None = None,
    grid: Sequence[tuple[int, int]] | None = None,
    max_tiles: int | None = None,
    queries: int | None = None,
) -> Blueprint:
    """Builds what `assemble` would from these sources, without reading a weight. Arguments as there.

    Args:
        llm: folder or Hub id of a causal LM.
        tower: folder or Hub id of a vision model.
        dtype: of the weights that there would be.
        fusion_name: of the projector.
        image_size: side in pixels; None: as the tower's own preprocessing ends.
        feature_layer: hidden layer of the tower that is projected, or several.
        image_tokenizer: folder or Hub id; None: no image generation.
        query_tokens: how many are added.
        factor: patches a side that become one token; None: the fusion's own.
        grid: (rows, columns) of tiles that images may be cut into; None: all of up to `max_tiles` tiles.
        max_tiles: None: the fusion's own.
        queries: tokens that an image becomes; None: the fusion's own.

    Returns:
        The model on the meta device, and its processor.

    Raises:
        SetupError: a config, tokenizer or image processor is neither here nor to be had.
        AssemblyError: the stock class cannot hold these, as far as structure shows it; numbers are not
            compared.
    """
    grids = None if grid is None else tuple(grid)
    draws = image_tokenizer is not None
    candidates = choices(Wish(fusion_name, factor, grids, max_tiles, draws, queries))
    source = find(llm, "LLM")
    config = llm_config(source)
    with loading(source, "LLM"), META:
        text = auto_class(config).from_config(config, dtype=dtype)
    codec = None if image_tokenizer is None else load_image_tokenizer(image_tokenizer, dtype, meta=True)
    tokenizer = load_tokenizer(source, text, special_tokens(candidates), marked=writes_images(candidates))
    add_query_tokens(tokenizer, query_tokens)
    vision = _tower(tower, dtype)
    where = vision.source.name
    image_processor, side = square_processor(vision.image_processor, image_size, where)
    if can_change(vision.model):
        vision.model.config.image_size = side
        with META:
            resized = AutoModel.from_config(vision.model.config, dtype=dtype).eval().requires_grad_(False)
        vision = replace(vision, model=resized)
    with torch.no_grad():
        layers = feature_layer if isinstance(feature_layer, int) else tuple(feature_layer)
        vision_facts, _ = tower_facts(vision, probe_pixels(image_processor).to(META, dtype), layers)
        text_facts = llm_structure(text)
        choice = choose(candidates, vision_facts.kind, where, text, vision.model)
        choice = check_grid(vision_facts, choice, text_facts, where)
        ingredients = Ingredients(
            text,
            vision.model,
            tokenizer,
            image_processor,
            text_facts,
            vision_facts,
            where,
            image_tokenizer=codec,
            factor=choice.factor,
            grids=choice.grids,
            queries=choice.queries,
        )
        held = choice.assembly.tower(ingredients, choice.fusion, None)
        model, processor, _ = put_together(choice, replace(ingredients, tower=held), seed=0)
    return Blueprint(model, processor)


def stock_blueprint(folder: str | Path, dtype: torch.dtype) -> Blueprint:
    """Builds a stock folder or Hub id without its weights.

    Args:
        folder: or a Hub id.
        dtype: of the weights that there would be.

    Returns:
        The model on the meta device, and its processor.

    Raises:
        SetupError, AssemblyError: as `load_model`.
    """
    model, processor = load_model(folder, dtype, meta=True)
    return Blueprint(model.eval(), processor)


def _tower(tower: str | Path, dtype: torch.dtype) -> LoadedTower:
    source = find(tower, "tower")
    with loading(source, "tower"):
        config = AutoConfig.from_pretrained(source.name, **source.arguments)
    config = getattr(config, "vision_config", None) or config
    with loading(source, "tower"), META:
        model = AutoModel.from_config(config, dtype=dtype)
    if model.main_input_name != "pixel_values":
        raise AssemblyError(
            f"{type(model).__name__} does not take images",
            where=source.name,
            fix="give a vision model as tower",
        )
    model = model.eval().requires_grad_(False)
    return LoadedTower(model, load_image_processor(source), source, (), ())
