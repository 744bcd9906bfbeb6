"""What classes of LLaVA's kind share: putting LLM and tower in, settings, and the door for kept features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from lockadapt.architectures.assembly import Fusion, Ingredients
from lockadapt.architectures.base import Features, ModelLayout
from lockadapt.errors import AssemblyError
from lockadapt.models.llms import LlmFacts
from lockadapt.models.quiet import quiet
from lockadapt.models.sources import some
from lockadapt.models.towers import TowerFacts

LAYOUT = ModelLayout(
    tower="model.vision_tower",
    llm="model.language_model",
    projector=("model.multi_modal_projector",),
    head="lm_head",
)
"""Where LLaVA keeps its parts, and most classes after it."""


def feature_strategy(vision: TowerFacts) -> str:
    """`default` drops the tower's first token (a class token), `full` keeps all."""
    return "default" if vision.extra_tokens else "full"


def common_config(ingredients: Ingredients) -> dict[str, Any]:
    """The fields that the configs of these classes share, by name.

    Ties are the LLM's own where the class can keep them (`LlmFacts.keeps_tie`).
    """
    text, layers = ingredients.llm.config, ingredients.vision.feature_layer
    text.tie_word_embeddings = ingredients.text.keeps_tie
    return {
        "text_config": text,
        "vision_config": ingredients.tower.config,
        "image_token_index": ingredients.tokenizer.convert_tokens_to_ids(ingredients.tokenizer.image_token),
        "vision_feature_layer": layers if isinstance(layers, int) else list(layers),
        "vision_feature_select_strategy": feature_strategy(ingredients.vision),
        "tie_word_embeddings": ingredients.text.keeps_tie,
    }


def join(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    ingredients: Ingredients,
    fusion: Fusion,
    seed: int,
    layout: ModelLayout = LAYOUT,
) -> Any:
    """Builds the Transformers model around the ingredients' own modules: without weights, then with theirs.

    Args:
        model_class: of Transformers; its projector's first path is filled by the fusion.
        config: of that class, its text and vision configs being the ingredients' own.
        ingredients: their parts move into the result.
        fusion: initialises the projector.
        seed: of the projector's weights.
        layout: of the class.

    Returns:
        The model in evaluation mode.

    Raises:
        AssemblyError: the stock class would build another LLM or tower from these configs.
    """
    llm, tower = ingredients.llm, ingredients.tower
    with torch.device("meta"), quiet():
        model: Any = model_class(config)
    same_structure("tower", model.get_submodule(layout.tower), tower)
    model.set_submodule(layout.tower, tower)
    put_llm(model, llm, ingredients.text, layout)
    projector = model.get_submodule(layout.projector[0])
    make_room(projector, llm)
    fusion.initialise(projector, torch.Generator().manual_seed(seed))
    forget_origin(llm.dtype, model.config, llm.config, tower.config)
    return model.eval()


def put_llm(model: Any, llm: PreTrainedModel, text: LlmFacts, layout: ModelLayout = LAYOUT) -> None:
    """Puts an LLM's body and head into a Transformers model that was built without weights.

    Args:
        model: the Transformers model, built on the meta device.
        llm: whose modules move into it.
        text: what the LLM is.
        layout: of the class.

    Raises:
        AssemblyError: the stock class would build another LLM from its config.
    """
    same_structure("LLM", model.get_submodule(layout.llm), llm.base_model)
    model.set_submodule(layout.llm, llm.base_model)
    weight = llm.get_output_embeddings().weight
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    table: Any = llm.get_input_embeddings().weight
    copied = text.tied and not text.keeps_tie
    head.weight = table if text.keeps_tie else nn.Parameter(weight.detach().clone() if copied else weight)
    model.set_submodule(layout.head, head)


def make_room(module: nn.Module, llm: PreTrainedModel) -> None:
    """Gives a module that was built without weights tensors of the LLM's dtype, on its device; in place."""
    uninitialized = {
        name: torch.empty(tensor.shape, dtype=llm.dtype, device=llm.device)
        for name, tensor in module.state_dict().items()
    }
    module.load_state_dict(uninitialized, assign=True)


def forget_origin(dtype: torch.dtype, *configs: Any) -> None:
    """Says in configs which dtype the weights have, and no longer where they came from: a local path."""
    for config in configs:
        config.dtype = dtype
        config.name_or_path = ""


def set_generation(model: Any, llm: PreTrainedModel, tokenizer: Any) -> None:
    """Gives the model the LLM's generation settings, and the tokenizer's special ids that they lack.

    Settings that contradict each other (a temperature without sampling, in many old checkpoints) cannot be
    saved; Transformers ignores them when it generates, so they are left out.
    """
    settings = llm.generation_config or GenerationConfig()
    try:
        settings.validate(strict=True)
    except ValueError:
        ids = {name: getattr(settings, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        settings = GenerationConfig(**ids)
    model.generation_config = settings
    for name in ("bos", "eos", "pad"):
        if getattr(settings, f"{name}_token_id") is None:
            setattr(settings, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))


def same_structure(what: str, stock_part: nn.Module, source: nn.Module) -> None:
    """Checks that the stock class, by a part's config alone, builds the class and weights of the source.

    Args:
        what: names the part in messages.
        stock_part: as the stock class builds it.
        source: whose weights it gets.

    Raises:
        AssemblyError: it builds others.
    """
    theirs, ours = stock_part.state_dict(), source.state_dict()
    different = {name for name in theirs.keys() | ours.keys() if name not in theirs or name not in ours}
    different |= {name for name in theirs.keys() & ours.keys() if theirs[name].shape != ours[name].shape}
    if type(stock_part) is not type(source) or different:
        detail = f" (different: {some(different)})" if different else ""
        raise AssemblyError(
            f"the Transformers class would rebuild the {what} as {type(stock_part).__name__}, "
            f"not {type(source).__name__}{detail}",
            fix=f"choose another {what}",
        )


@torch.no_grad()
def entrance(model: Any, path: str, images: Mapping[str, Tensor]) -> Tensor:
    """What the stock class feeds its projector for images.

    Args:
        model: a Transformers model.
        path: of the projector.
        images: arguments of `get_image_features`.

    Returns:
        (images or tiles, tokens, channels), without gradient.
    """
    seen: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(
        lambda _, arguments: seen.append(arguments[0].detach())
    )
    try:
        model.model.get_image_features(**images)
    finally:
        handle.remove()
    return seen[0]


def projector_features(pack: Callable[[Tensor], Any], layout: ModelLayout = LAYOUT) -> Features:
    """What enters the projector is kept, and comes back projected, by `mm_encoder_outputs`.

    Taken where it happens, at the projector's entrance, so layer choice, dropped class token and flattening
    are the stock class's own. The tower is run without gradient, in whatever mode (train, eval) it is in.

    Args:
        pack: what the projector returns -> what the class's forward expects as `pooler_output`.
        layout: of the class.

    Returns:
        How features are taken and given.
    """
    path = layout.projector[0]

    def take(model: Any, images: Mapping[str, Tensor]) -> Tensor:
        return entrance(model, path, images)

    def give(model: Any, features: Tensor, scales: Tensor | None) -> dict[str, Any]:
        projector = model.get_submodule(path)
        weight = next(projector.parameters())
        features = features.to(weight.device)
        if scales is not None:
            features = features * scales.to(weight.device)
        projected = pack(projector(features.to(weight.dtype)))
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=projected)}}

    return Features(take, give)


NESTED = ("CLIPVisionModel", "SiglipVisionModel")
"""Towers that Transformers 5.6 flattened: vLLM, llama.cpp and older Transformers look for them below
`vision_model.`"""


def nested_tower_keys(model: Any, stock: Mapping[str, str]) -> Mapping[str, str]:
    """See `Architecture.keys`: the tower's keys with the level of names that older clients know."""
    if type(model.get_submodule(LAYOUT.tower)).__name__ not in NESTED:
        return {}
    keys = {}
    for key, name in stock.items():
        suffix = name.removeprefix(f"{LAYOUT.tower}.")
        start = key.removesuffix(suffix)
        if suffix != name and start + suffix == key and start.endswith("vision_tower."):
            keys[key] = f"{start}vision_model.{suffix}"
    return keys
