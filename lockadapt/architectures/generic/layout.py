"""Finds the parts of any stock VLM by its structure: sub-configs say which modules are LLM and tower."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lockadapt.architectures.base import RETRIEVAL, ModelLayout, is_below
from lockadapt.errors import AssemblyError


def find_layout(model: PreTrainedModel) -> ModelLayout:
    """Where a stock VLM of any class keeps its parts.

    LLM and tower are the outermost modules whose config *is* the text or the vision sub-config; the head is
    what the class calls its output embeddings; the connector is all else. A class that keeps nothing
    else has its connector inside the tower: modules behind its blocks that lead to the LLM's width.

    Args:
        model: on any device, the meta device too; adapters may be attached.

    Returns:
        The layout; its `projector` may hold several modules and bare parameters.

    Raises:
        AssemblyError: the model has no LLM, tower or head of its own, or no connector between them.
    """
    config: Any = model.config
    text = config.get_text_config(decoder=True)
    vision = getattr(config, "vision_config", None)
    name = type(model).__name__
    llm = _outermost(model, text)
    tower = None if vision is None else _outermost(model, vision)
    output = model.get_output_embeddings()
    head = None if output is None else _path_of(model, output)
    for part, located in (("LLM", llm), ("vision tower", tower), ("head", head)):
        if located is None:
            raise AssemblyError(
                f"{name} has no {part} that its config describes",
                fix="start from another class, or from an LLM and a tower",
            )
    assert llm is not None
    assert tower is not None
    if config.is_encoder_decoder or is_below(tower, llm) or is_below(llm, tower):
        raise AssemblyError(
            f"{name} is no decoder behind a tower", fix="start from a class whose LLM only decodes"
        )
    audio = _path_of(model, _encoder(model, "audio"))
    frozen = [path for path in (llm, tower, head, audio, RETRIEVAL) if path]
    connector = tuple(_whole(model, "", frozen)) or tuple(_merger(model, tower, text))
    if not connector:
        raise AssemblyError(f"{name} has nothing between tower and LLM that could train")
    return ModelLayout(tower=tower, llm=llm, projector=connector, head=head)


def _outermost(model: nn.Module, config: Any) -> str | None:
    for name, module in model.named_modules():
        if name and isinstance(module, PreTrainedModel) and module.config is config:
            return name
    return None


def _encoder(model: Any, modality: str) -> nn.Module | None:
    """What the class calls its encoder of a modality, if it has one."""
    try:
        encoder = model.get_encoder(modality=modality)
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return None
    return encoder if encoder is not model and encoder is not getattr(model, "model", None) else None


def _path_of(model: nn.Module, module: nn.Module | None) -> str | None:
    return (
        None if module is None else next(n for n, submodule in model.named_modules() if submodule is module)
    )


def _whole(parent: nn.Module, path: str, others: list[str]) -> Iterator[str]:
    """The outermost modules and bare parameters that hold nothing of the other parts."""
    for leaf, _ in parent.named_parameters(recurse=False):
        yield f"{path}{leaf}"
    for leaf, child in parent.named_children():
        name = f"{path}{leaf}"
        if any(is_below(name, other) for other in others):
            continue
        if any(is_below(other, name) for other in others):
            yield from _whole(child, f"{name}.", others)
        elif next(child.parameters(), None) is not None:
            yield name


def _merger(model: nn.Module, tower: str, text: Any) -> Iterator[str]:
    """The tower's own modules behind its blocks, those with a matrix that leads to the LLM's width."""
    blocks_seen = False
    for leaf, child in model.get_submodule(tower).named_children():
        if isinstance(child, nn.ModuleList) and not blocks_seen:
            blocks_seen = True
        elif blocks_seen and any(
            parameter.dim() > 1 and parameter.shape[0] == text.hidden_size for parameter in child.parameters()
        ):
            yield f"{tower}.{leaf}"
