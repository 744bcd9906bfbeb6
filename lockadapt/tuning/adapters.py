"""Puts LoRA on full module paths of the LLM, never on anything else, and says what trains."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from peft import LoraConfig, PeftModel, TrainableTokensConfig, get_peft_model
from torch import nn

from lockadapt.architectures import architecture_of
from lockadapt.architectures.base import Architecture, component_of, is_below, unwrap_model
from lockadapt.architectures.blocks import (
    attention_linears,
    block_linears,
    is_linear,
)
from lockadapt.errors import AdapterError
from lockadapt.tuning.experts import (
    EXPERTS,
    expert_path,
    kept_by_peft,
    named_experts,
    require_adaptable,
    stacked_experts,
)
from lockadapt.tuning.query_rows import embedding_path

Targets = Literal["all-linear", "attention", "experts"] | Sequence[str]


TRAINABLE = ("projector", "lora", "retrieval", "generation")
"""The parts of a model that can train."""

_MISSING = {
    "lora": "attach an adapter first",
    "projector": "this model class has none",
    "retrieval": "name an objective of the kind itc",
    "generation": "start from a Janus checkpoint, or give model.image_tokenizer",
}


@dataclass(frozen=True)
class LoraSettings:
    """What `lora_config` makes a PEFT config from.

    Attributes:
        rank: of the update B A of each layer.
        alpha: its scale is alpha / rank (rsLoRA: alpha / sqrt(rank)); None: twice the rank.
        dropout: of a layer's input on its way to A, 0 to 1.
        targets: `all-linear` (of the LLM's blocks), `attention`, `experts` (stacked ones), or a list of these
            and of names of layers: last components, tails of paths, or full paths.
        rslora: rank-stabilised scale (arXiv 2312.03732).
        dora: directions and magnitudes apart (arXiv 2402.09353).
        init: of A and B: `default`, or another that `peft.LoraConfig.init_lora_weights` takes.
    """

    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    targets: Targets = "all-linear"
    rslora: bool = False
    dora: bool = False
    init: str = "default"


def resolve_targets(model: nn.Module, targets: Targets) -> tuple[list[str], list[str]]:
    """Resolves `targets` to the linear layers and stacked experts that it means, all inside the LLM's blocks.

    A name is a last path component (`q_proj`), a tail of a path (`self_attn.q_proj`) or a full path. Stacked
    experts are named by two components at least (`experts.down_proj`).

    Args:
        model: a Transformers model, not yet wrapped.
        targets: `attention`, `all-linear`, `experts`, or a list of these and of names.

    Returns:
        Full paths of linear layers, and of tensors of stacked experts, each in the model's order or that of
        the names.

    Raises:
        AdapterError: a name matches nothing, or only modules outside the LLM's blocks.
    """
    allowed, stacks = block_linears(model), stacked_experts(model)
    layers: dict[str, None] = {}
    experts: dict[str, None] = {}
    for target in [targets] if isinstance(targets, str) else targets:
        if target == "all-linear":
            matching = kept_by_peft(model, list(allowed))
        elif target == "attention":
            matching = list(attention_linears(model))
        else:
            matching = [path for path in allowed if path == target or path.endswith("." + target)]
        stacked = named_experts(list(stacks), target)
        if not matching and not stacked:
            raise _unmatched(model, target, allowed, stacks)
        layers.update(dict.fromkeys(matching))
        experts.update(dict.fromkeys(stacked))
    return list(layers), list(experts)


def lora_config(
    model: nn.Module, settings: LoraSettings | None = None, *, train_projector: bool = False
) -> LoraConfig:
    """The PEFT config for this model, its targets resolved to full module paths inside the LLM's blocks.

    Args:
        model: a Transformers model, such as that of `lockadapt.assemble`.
        settings: rank, targets and so on; default: `LoraSettings()`.
        train_projector: also train the projector, whole (`modules_to_save`). For trainers such as TRL's:
            `GroundingTrainer` trains and saves the projector by itself and refuses such a config.

    Returns:
        What `peft_config` of a trainer takes.

    Raises:
        AdapterError: a target matches nothing, or only modules outside the LLM's blocks; dropout or DoRA on
            stacked experts.
    """
    settings = settings or LoraSettings()
    layers, experts = resolve_targets(model, settings.targets)
    stacks = stacked_experts(model)
    require_adaptable({path: stacks[path] for path in experts}, settings.dropout, settings.dora)
    init: bool | str = True if settings.init == "default" else settings.init
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha if settings.alpha is not None else 2 * settings.rank,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=layers,
        target_parameters=experts or None,
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        init_lora_weights=init,  # type: ignore[arg-type]
        bias="none",
        modules_to_save=list(architecture_of(model).layout.projector) if train_projector else None,
    )


def attach_adapters(model: nn.Module, lora: LoraSettings | None, query_ids: Sequence[int] = ()) -> nn.Module:
    """Wraps the model with PEFT, in place: LoRA, trained vocabulary rows, or both; with neither not at all.

    Args:
        model: a Transformers model.
        lora: None: no LoRA.
        query_ids: of the vocabulary rows that train (`trainable_token_indices`); a tied head gets them as
            well.

    Returns:
        The PEFT model, or the model itself where there is nothing to attach.

    Raises:
        AdapterError: see `lora_config` and `attach_lora`.
    """
    if lora is not None:
        config = lora_config(model, lora)
        if query_ids:
            config.trainable_token_indices = {embedding_path(model): list(query_ids)}
        return attach_lora(model, config)
    if not query_ids:
        return model
    tokens = TrainableTokensConfig(token_indices=list(query_ids), target_modules=[embedding_path(model)])
    return get_peft_model(model, tokens)  # type: ignore[arg-type]


def attach_lora(model: nn.Module, config: LoraConfig) -> PeftModel:
    """Wraps the model with PEFT, in place, and proves that every adapter lies in the LLM's blocks.

    Args:
        model: a Transformers model.
        config: as `lora_config` makes it.

    Returns:
        The PEFT model.

    Raises:
        AdapterError: the config asks for anything but LoRA on the LLM's linear layers and stacked experts.
    """
    if config.modules_to_save:
        raise AdapterError(
            f"modules_to_save={sorted(config.modules_to_save)}: the projector is always trained and "
            "saved by itself",
            where="peft_config",
            fix="leave modules_to_save empty (lora_config without train_projector)",
        )
    allowed = {*block_linears(model), *stacked_experts(model)}
    _set_fan_in(model, config)
    peft_model = get_peft_model(model, config)  # type: ignore[arg-type]
    outside = [path for path in adapted_paths(peft_model) if path not in allowed]
    if outside:
        raise AdapterError(
            f"LoRA would land outside the LLM's blocks: {', '.join(outside[:3])}",
            where="peft_config.target_modules",
            fix="use full module paths, as lockadapt.lora_config gives them",
        )
    return peft_model


def adapted_paths(model: nn.Module) -> list[str]:
    """Full stock paths of the linear layers and tensors of stacked experts that carry LoRA."""
    return [
        expert_path(name, module) if hasattr(module, "parameter_name") else name
        for name, module in unwrap_model(model).named_modules()
        if hasattr(module, "lora_A")
    ]


def default_parts(model: nn.Module, needed: Iterable[Sequence[str]]) -> list[str]:
    """What trains where nobody says: what each objective needs, and LoRA where there is any."""
    parts = [part for some in needed for part in some]
    return list(dict.fromkeys([*parts, *(["lora"] if adapted_paths(model) else [])]))


def set_trainable(model: nn.Module, parts: Sequence[str], *, lock_text: bool = False) -> list[str]:
    """Freezes everything but the given parts (of `TRAINABLE`).

    What only stands in for nothing stays frozen (`Architecture.frozen_layers`): the identity behind a linear
    projector.

    Args:
        model: a Transformers model, possibly wrapped by PEFT.
        parts: what trains.
        lock_text: freeze all that texts without an image go through as well.

    Returns:
        Names of the parameters that train.

    Raises:
        AdapterError: the model has nothing of a part, or cannot lock its texts.
    """
    base, architecture = unwrap_model(model), architecture_of(model)
    locks = _text_locks(base, architecture, parts) if lock_text else None
    layout, frozen = architecture.layout, architecture.frozen_layers(base.config)
    trainable_parts = set()
    for name, parameter in base.named_parameters():
        part = component_of(name, layout)
        trains = part in parts and part in TRAINABLE and not any(is_below(name, path) for path in frozen)
        trains = trains and not (locks is not None and locks(name))
        parameter.requires_grad_(trains)
        trainable_parts.update([part] if trains else [])
    for part in parts:
        if part not in trainable_parts:
            raise AdapterError(f"nothing of {part} can be trained", where="train", fix=_MISSING[part])
    return [name for name, parameter in base.named_parameters() if parameter.requires_grad]


def _text_locks(model: Any, architecture: Architecture, parts: Sequence[str]) -> Callable[[str], bool]:
    beside = architecture.beside
    if beside is None or beside.text_locks is None:
        raise AdapterError(
            f"{type(model).__name__} cannot keep what its LLM makes of texts",
            where="model.lock_text",
            fix="use fusion: cross-attention with a bias-free Llama and a CLIP tower, or leave it out",
        )
    if set(parts) - {"projector"}:
        raise AdapterError(
            f"{', '.join(sorted(set(parts) - {'projector'}))} would change what the LLM makes of texts",
            where="model.lock_text",
            fix="train the projector only, or leave it out",
        )
    return beside.text_locks


def _unmatched(
    model: nn.Module, target: str, allowed: dict[str, nn.Module], stacks: dict[str, nn.Parameter]
) -> AdapterError:
    if target == EXPERTS:
        return AdapterError(
            "the LLM has no stacked experts",
            where="lora.targets",
            fix="leave `experts` out: all-linear adapts every layer of its blocks",
        )
    elsewhere = [
        name
        for name, module in unwrap_model(model).named_modules()
        if is_linear(module) and name not in allowed and (name == target or name.endswith("." + target))
    ]
    names = sorted({path.rsplit(".", 1)[-1] for path in allowed})
    names += sorted({".".join(path.rsplit(".", 2)[-2:]) for path in stacks})
    if elsewhere:
        return AdapterError(
            f"{target!r} matches only modules outside the LLM's blocks: {', '.join(elsewhere[:3])}",
            where="lora.targets",
            fix=f"adapt the LLM's layers: {', '.join(names)}",
        )
    near = [name for name in names if name.endswith("." + target)]
    near = near or difflib.get_close_matches(target, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return AdapterError(
        f"{target!r} matches no linear layer of the LLM",
        where="lora.targets",
        fix=f"{hint}There are: {', '.join(names) or 'none that LoRA can add to'}",
    )


def _set_fan_in(model: nn.Module, config: LoraConfig) -> None:
    """GPT-2's Conv1D stores its weight transposed; PEFT wants to be told, and warns if it has to find out."""
    from transformers.pytorch_utils import Conv1D

    if all(isinstance(module, Conv1D) for module in block_linears(model).values()):
        config.fan_in_fan_out = True
