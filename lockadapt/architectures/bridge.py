"""Put the modules of an LLM and a tower into one stock model, without copying a weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from lockadapt.architectures.fusions import BODIES, Projector, stock_config
from lockadapt.errors import AssemblyError
from lockadapt.models.llms import LlmFacts
from lockadapt.models.quiet import quiet
from lockadapt.models.sources import some
from lockadapt.models.towers import TowerFacts


def join(
    llm: PreTrainedModel,
    tower: PreTrainedModel,
    text: LlmFacts,
    vision: TowerFacts,
    image_id: int,
    projector_kind: Projector,
    seed: int,
) -> Any:
    """The stock model around the very modules of the sources: built without weights, then given theirs.

    Args:
        llm: the causal LM, its vocabulary already widened. Its parts move into the result, its config changes.
        tower: the vision model; likewise.
        text: what `probe_llm` found.
        vision: what `probe_tower` found.
        image_id: id of `<image>`.
        projector_kind: the fusion whose projector is initialised from `seed`.
        seed: of the projector's weights.

    Raises:
        AssemblyError: the stock class would build another LLM or tower from these configs.
    """
    llm.config.tie_word_embeddings = text.keeps_tie
    config = stock_config(vision, llm.config, tower.config, image_id, projector_kind.activation)
    with torch.device("meta"), quiet():
        model: Any = BODIES[vision.kind].model_class(config)
    same_structure("tower", model.model.vision_tower, tower)
    model.model.vision_tower = tower
    put_llm(model, llm, text)
    projector = model.model.multi_modal_projector
    make_room(projector, llm)
    projector_kind.initialise(projector, torch.Generator().manual_seed(seed))
    for part in (model.config, llm.config, tower.config):
        part.dtype = llm.dtype
        part.name_or_path = ""  # a path on this machine, and nobody else's business
    return model.eval()


def put_llm(model: Any, llm: PreTrainedModel, text: LlmFacts) -> None:
    """Put an LLM's body and head into a stock model that was built without weights.

    Raises:
        AssemblyError: the stock class would build another LLM from its config.
    """
    same_structure("LLM", model.model.language_model, llm.base_model)
    model.model.language_model = llm.base_model
    weight = llm.get_output_embeddings().weight
    model.lm_head = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    table = llm.get_input_embeddings().weight
    copied = text.tied and not text.keeps_tie
    model.lm_head.weight = (
        table if text.keeps_tie else nn.Parameter(weight.detach().clone() if copied else weight)
    )


def make_room(module: nn.Module, llm: PreTrainedModel) -> None:
    """Give a module that was built without weights tensors of the LLM's dtype, on its device; in place."""
    room = {
        name: torch.empty(tensor.shape, dtype=llm.dtype, device=llm.device)
        for name, tensor in module.state_dict().items()
    }
    module.load_state_dict(room, assign=True)


def set_generation(model: Any, llm: PreTrainedModel, tokenizer: Any) -> None:
    """Give the stock model the LLM's generation settings, and the tokenizer's special ids where those lack them.

    Settings that contradict each other (a temperature without sampling, in many old checkpoints) cannot be saved;
    Transformers ignores them when it generates, so they are left out.
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
    """The stock class builds this part from its config alone; that must give the class and weights of the source."""
    theirs, ours = stock_part.state_dict(), source.state_dict()
    different = {name for name in theirs.keys() | ours.keys() if name not in theirs or name not in ours}
    different |= {name for name in theirs.keys() & ours.keys() if theirs[name].shape != ours[name].shape}
    if type(stock_part) is not type(source) or different:
        detail = f" (different: {some(different)})" if different else ""
        raise AssemblyError(
            f"the stock class would rebuild the {what} as {type(stock_part).__name__}, not {type(source).__name__}{detail}",
            fix=f"choose another {what}",
        )
