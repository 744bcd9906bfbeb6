"""Puts an adapter's layers and parts into a model through PEFT, whose switching works, and takes them out."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import LoraConfig
from peft.functional import cast_adapter_dtype, inject_adapter_in_model, set_adapter
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper, get_peft_model_state_dict
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn

from lockadapt.architectures import layout_of, llm_of
from lockadapt.architectures.base import RETRIEVAL, ModelLayout, component_of
from lockadapt.attaching.source import Source
from lockadapt.errors import AdapterError, VerificationError
from lockadapt.models.quiet import quiet
from lockadapt.models.sources import some
from lockadapt.tuning.adapter_config import refuse_endless_patterns
from lockadapt.tuning.adapter_keys import COPY, PREFIX, current_keys, require_copy
from lockadapt.tuning.quantize import dequantized_weight, is_quantized


class NoRetrieval(nn.Module):
    """Stands where an adapter that does not embed would have its retrieval module."""

    def __getattr__(self, name: str) -> Any:
        if name in ("embedding_proj_layer", "temperature", "pooling"):
            raise VerificationError(
                "the active adapter was not trained to embed images and texts",
                where=RETRIEVAL,
                fix="switch to one that was",
            )
        return super().__getattr__(name)


def graft(model: Any, source: Source, name: str, others: Sequence[str]) -> None:
    """Injects an adapter and its parts, fills them, and makes it active. The caller undoes it if this fails.

    Args:
        model: stock, perhaps with `others` attached already.
        source: the adapter, read.
        name: that it gets.
        others: names of the adapters that are attached already.

    Raises:
        VerificationError: a tensor is missing, left over, or of another shape; a layer of the base beside
            its LoRA is not the model's; a pattern of the config never ends.
    """
    layout = layout_of(model)
    config = source.config or LoraConfig(target_modules=DUMMY_TARGET_MODULES, inference_mode=True)
    names = [name for name, _ in model.named_modules()]
    refuse_endless_patterns(config.to_dict(), names, str(source.folder))
    try:
        with quiet():
            inject_adapter_in_model(copy.deepcopy(config), model, name)
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise VerificationError(
            f"the adapter does not fit the model: {error}", where=str(source.folder)
        ) from error
    model._hf_peft_config_loaded = True
    source = dataclasses.replace(source, tensors=_by_current_names(model, source))
    cast_adapter_dtype(model, name)  # LoRA in float32 on a bfloat16 model, as it was trained
    brought = {component_of(key, layout) for key in source.tensors if not _is_row(key)}
    for path in _part_paths(model, layout, source):
        _wrap(model, path, name, others)
    _add_retrieval(model, source, name, others, RETRIEVAL in brought)
    for layer in _layers(model, TrainableTokensLayer):
        for adapter in (*others, name):
            if adapter not in layer.token_indices:
                # PEFT looks every active adapter up in it, and an empty list of rows fails: the base's own
                # first row.
                layer.update_layer(adapter, token_indices=[0])
    _fill(model, source, name, layout, brought)
    _follow_mode(model)
    switch(model, name)


def _by_current_names(model: Any, source: Source) -> dict[str, Tensor]:
    """The tensors by today's names, without layers of the base, which must be the model's own."""
    if source.config is None:
        return source.tensors
    prefixed = {PREFIX + key: tensor for key, tensor in source.tensors.items()}
    tensors = {
        key.removeprefix(PREFIX): tensor
        for key, tensor in current_keys(model, source.config, prefixed, "default").items()
    }
    modules = dict(model.named_modules())
    for key in [key for key in tensors if key.endswith(COPY)]:
        layer = modules.get(path := key.removesuffix(COPY))
        if isinstance(layer, BaseTunerLayer):
            base: Any = layer.get_base_layer()
            brought = tensors.pop(key)
            if not is_quantized(base):  # values that were rounded are compared with the base's identity
                require_copy(f"{path}.weight", brought, base.weight, str(source.folder))
    return tensors


def switch(model: Any, name: str) -> None:
    """Makes an adapter active in every layer and part, frozen."""
    set_adapter(model, name, inference_mode=True)
    for parameter in _own(model):
        parameter.requires_grad_(False)


def active(model: Any) -> str:
    """The adapter that is active, whoever switched to it."""
    layer = next(_layers(model, ModulesToSaveWrapper))
    return str(layer.active_adapters[0])


def remove(model: Any, name: str, successor: str) -> None:
    """Takes one adapter out and makes `successor` active; the others stay."""
    switch(model, successor)
    for layer in _layers(model, BaseTunerLayer):
        layer.delete_adapter(name)
    for wrapper in _layers(model, ModulesToSaveWrapper):
        wrapper.delete_adapter(name, [successor])
    for wrapper in _layers(model, TrainableTokensWrapper):
        wrapper._adapters.discard(name)
    model.peft_config.pop(name, None)


def _layers(model: nn.Module, *kinds: Any) -> Iterator[Any]:
    return (module for module in list(model.modules()) if isinstance(module, kinds))


def _own(model: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters of adapters and of parts beside the base's own."""
    for layer in _layers(model, BaseTunerLayer, ModulesToSaveWrapper):
        for attribute in layer.adapter_layer_names:
            yield from getattr(layer, attribute).parameters()


def _part_paths(model: Any, layout: ModelLayout, source: Source) -> list[str]:
    """Parts of the stock class that train; every adapter has its own, so that PEFT can switch them."""
    paths = [*layout.projector, *layout.generation, *(path for path in layout.retrieval if path != RETRIEVAL)]
    bare = {path for path in paths if path in dict(model.named_parameters())}
    if brought := sorted(bare & source.tensors.keys()):
        raise AdapterError(
            f"{brought[0]} is a tensor by itself and no module, so a live model cannot hold a second one",
            where=str(source.folder),
            fix="merge it: lockadapt merge RUN, or lockadapt merge BASE --adapter FOLDER",
        )
    return [path for path in paths if path not in bare]


def _wrap(model: Any, path: str, name: str, others: Sequence[str]) -> None:
    """Gives an adapter a copy of a part, in floating point also where the user's model has it quantized."""
    parent, _, leaf = path.rpartition(".")
    holder, part = model.get_submodule(parent), model.get_submodule(path)
    if not isinstance(part, ModulesToSaveWrapper):
        dtype = llm_of(model).get_input_embeddings().weight.dtype
        part = ModulesToSaveWrapper(_floating(part, dtype), name)
        setattr(holder, leaf, part)
    for adapter in (*others, name):
        part.update(adapter)


def _floating(part: nn.Module, dtype: torch.dtype) -> nn.Module:
    quantized = [module for module in part.modules() if is_quantized(module)]
    if not quantized:
        return part
    memo: dict[int, Any] = {}
    for module in quantized:
        layer: Any = module
        weight = dequantized_weight(layer, dtype)
        plain = nn.Linear(weight.shape[1], weight.shape[0], layer.bias is not None, weight.device, dtype)
        plain.weight.data = weight
        if layer.bias is not None:
            plain.bias.data = layer.bias.data.to(dtype, copy=True)
        memo[id(layer)] = plain.requires_grad_(False).train(layer.training)
    return copy.deepcopy(part, memo)


def _add_retrieval(model: Any, source: Source, name: str, others: Sequence[str], brings: bool) -> None:
    """Adds what embeds, which no stock class has; adapters that do not embed get a stand-in that says so."""
    wrapper = model._modules.pop(RETRIEVAL, None)
    if wrapper is None and not brings:
        return
    module: nn.Module = NoRetrieval()
    if brings:
        if source.experiment is None:
            raise VerificationError("holds a retrieval module and no recipe", where=str(source.folder))
        for objective in source.experiment.objectives.values():
            objective.prepare(model)
        module = model._modules.pop(RETRIEVAL).requires_grad_(False)
    if wrapper is None:
        wrapper = ModulesToSaveWrapper(NoRetrieval(), name)
        for adapter in others:
            wrapper.update(adapter)
    wrapper.update(name)
    wrapper.modules_to_save[name] = module
    model.add_module(RETRIEVAL, wrapper)


@torch.no_grad()
def _fill(model: Any, source: Source, name: str, layout: ModelLayout, brought: set[str]) -> None:
    """Copies every tensor to its place; each exactly once, and none may be without one."""
    own = _slots(model, name, layout, brought, source.trained_rows)
    missing, unexpected = sorted(set(own) - set(source.tensors)), sorted(set(source.tensors) - set(own))
    if missing or unexpected:
        mismatches = [
            f"{word} {some(keys)}"
            for word, keys in (("lacks", missing), ("has no place for", unexpected))
            if keys
        ]
        raise VerificationError(
            f"the adapter does not fit the model: it {' and '.join(mismatches)}".replace(
                "it has no place", "there is no place"
            ),
            where=str(source.folder),
            fix="use the model that it was trained on, and the whole folder",
        )
    for key, slot in own.items():
        value = source.tensors[key]
        if value.shape != slot.shape:
            raise VerificationError(
                f"{key} is {tuple(value.shape)}, the model wants {tuple(slot.shape)}",
                where=str(source.folder),
            )
        slot.copy_(value)


def _slots(
    model: Any, name: str, layout: ModelLayout, brought: set[str], rows: Sequence[int]
) -> dict[str, Tensor]:
    """Storage of everything that an adapter of this kind brings, by the key that its files have."""
    slots = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    parts = tuple(f"{part}." for part in (*layout.projector, *layout.generation, *layout.retrieval))

    def wanted(key: str) -> bool:
        # Not what stands there for an adapter that leaves rows or a part as they are in the base.
        if _is_row(key):
            return bool(rows)
        return not key.startswith(parts) or component_of(key, layout) in brought

    return {key: tensor for key, tensor in slots.items() if wanted(key)}


def _is_row(key: str) -> bool:
    """Whether a key is one of trained vocabulary rows, in PEFT's naming."""
    return ".trainable_tokens_" in key


def _follow_mode(model: nn.Module) -> None:
    """New layers come in training mode; they take the mode of what they wrap."""
    for layer in _layers(model, BaseTunerLayer, ModulesToSaveWrapper):
        inner = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer.original_module
        layer.training = inner.training
        for attribute in layer.adapter_layer_names + layer.other_param_names:
            part = getattr(layer, attribute, None)
            if isinstance(part, nn.Module):
                part.train(inner.training)
