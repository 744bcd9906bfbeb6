"""Reads a PEFT folder into changes of stock parameters; every tensor is used exactly once, or refused."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from lockadapt.errors import AdapterError, DataError, SetupError, VerificationError
from lockadapt.exports.weights.changes import LowRank, Rows, WeightUpdate, Whole
from lockadapt.models.quiet import quiet
from lockadapt.models.safetensors_file import read_shard
from lockadapt.models.sources import some
from lockadapt.tuning.adapter_config import (
    CONFIG,
    WEIGHTS,
    read_adapter_config,
    refuse_endless_patterns,
    refuse_pickled_adapter,
)
from lockadapt.tuning.adapter_keys import COPY, PREFIX, current_keys
from lockadapt.tuning.experts import expert_path

NAME = "default"

HARMLESS = {
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "target_parameters",
    "task_type",
}
"""Fields of a PEFT config that say nothing about arithmetic, or that PEFT turns into layers which are looked
at here."""
COMPUTED = {
    "alpha_pattern",
    "fan_in_fan_out",
    "init_lora_weights",
    "lora_alpha",
    "modules_to_save",
    "r",
    "rank_pattern",
    "token_indices",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
}
"""Fields that this file computes with."""
PLAIN_INITS = (True, False, "gaussian", "orthogonal", "eva")
"""Initialisations that leave the base as it is."""


def read_adapter(model: Any, folder: Path, weight: float = 1.0) -> dict[str, list[WeightUpdate]]:
    """Reads an adapter as changes of stock parameters.

    Args:
        model: the stock class on the meta device, nothing attached; it is altered.
        folder: as PEFT saves it: LoRA, rsLoRA, DoRA, rank and alpha patterns, trained tokens, modules to
            save.
        weight: how much of the adapter: a factor on what it adds, or on the way from a stored to a trained
            tensor.

    Returns:
        Changes by the name of the stock parameter that they change.

    Raises:
        SafetyError: its weights are pickle.
        SetupError, DataError: the folder cannot be read.
        AdapterError: it is of a kind that is no sum with the base, or is not known here.
        VerificationError: a tensor has no place, is missing, or has another shape.
    """
    from peft import PeftConfig, get_peft_model

    refuse_pickled_adapter(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise SetupError(
                f"not a PEFT adapter: {name} not found", where=str(folder), fix="pass a PEFT folder"
            )
    read_shard(folder / WEIGHTS)
    settings = read_adapter_config(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = PeftConfig.from_pretrained(str(folder))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise DataError(
            f"cannot be read: {error}", where=str(folder / CONFIG), fix="copy it again"
        ) from error
    _require_kind(config, str(folder / CONFIG))
    known = {field.name for field in dataclasses.fields(config)}
    if unknown := sorted(key for key, value in settings.items() if value and key not in known):
        raise AdapterError(
            f"this version of PEFT does not know {some(unknown)}",
            where=str(folder / CONFIG),
            fix="pip install -U peft, or leave the key out",
        )
    _require_sum(config, weight, str(folder / CONFIG))
    refuse_endless_patterns(settings, [name for name, _ in model.named_modules()], str(folder / CONFIG))
    prepared: Any = dataclasses.replace(config, init_lora_weights=False) if _is_lora(config) else config
    try:
        with quiet(), torch.device("meta"):
            wrapped = get_peft_model(model, prepared, adapter_name=NAME, low_cpu_mem_usage=True)
            tensors = current_keys(wrapped, config, load_file(folder / WEIGHTS, device="cpu"), NAME)
    except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        raise VerificationError(
            f"the adapter does not fit the base: {error}", where=str(folder), fix=_FIX
        ) from error
    parts = _Found(tensors, weight, str(folder))
    changes = parts.changes(wrapped.get_base_model())
    if tensors:
        raise VerificationError(f"the base has no place for {some(tensors)}", where=str(folder), fix=_FIX)
    if not changes:
        raise VerificationError("the adapter changes nothing", where=str(folder), fix=_FIX)
    return changes


_FIX = "use the base that the adapter was trained on"


@dataclasses.dataclass
class _Found:
    """Takes the tensors of an adapter one by one, by the modules that PEFT made for them."""

    tensors: dict[str, Tensor]
    weight: float
    where: str

    def changes(self, base: Any) -> dict[str, list[WeightUpdate]]:
        from peft.tuners.lora import LoraLayer
        from peft.tuners.lora.layer import ParamWrapper
        from peft.tuners.trainable_tokens import TrainableTokensLayer
        from peft.utils.other import ModulesToSaveWrapper

        changes: dict[str, list[WeightUpdate]] = {}
        for path, module in base.named_modules():
            if isinstance(module, ModulesToSaveWrapper):
                original = module.original_module
                for name, parameter in original.named_parameters():
                    changes[f"{path}.{name}"] = [self.whole(f"{path}.{name}", parameter)]
            elif isinstance(module, TrainableTokensLayer):
                if not module._tied_adapter:
                    # PEFT puts a layer of its own inside the module, beside LoRA, and replaces the module
                    # without.
                    where = path.removesuffix(".token_adapter")
                    changes.setdefault(f"{where}.weight", []).append(self.rows(path, module))
            elif isinstance(module, LoraLayer):
                is_experts = isinstance(module, ParamWrapper)
                name = expert_path(path, module) if is_experts else f"{path}.weight"
                update = self.experts(path, module) if is_experts else self.low_rank(path, module)
                changes.setdefault(name, []).insert(0, update)
        return changes

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        key = PREFIX + name
        if key not in self.tensors:
            raise VerificationError(f"the adapter lacks {key}", where=self.where, fix=_FIX)
        tensor = self.tensors.pop(key)
        if tuple(tensor.shape) != shape:
            raise VerificationError(
                f"{key} has the shape {tuple(tensor.shape)}, and the base wants {shape}",
                where=self.where,
                fix=_FIX,
            )
        if not bool(torch.isfinite(tensor).all()):
            raise VerificationError(
                f"{key} is not finite everywhere", where=self.where, fix="train the adapter again"
            )
        return tensor

    def whole(self, name: str, parameter: Tensor) -> Whole:
        tensor = self.take(name, tuple(parameter.shape))
        return Whole(as_matrix(tensor), self.weight)

    def rows(self, path: str, module: Any) -> Rows:
        ids = tuple(module.token_indices[NAME])
        shape = tuple(module.trainable_tokens_delta[NAME].shape)
        return Rows(ids, self.take(f"{path}.trainable_tokens_delta", shape), self.weight)

    def low_rank(self, path: str, module: Any) -> LowRank:
        from peft.tuners.lora import layer as lora
        from peft.tuners.lora.variants import DoraEmbeddingVariant, DoraLinearVariant

        variant = module.lora_variant.get(NAME)
        if type(module) not in (lora.Linear, lora.Embedding) or not isinstance(
            variant, (type(None), DoraLinearVariant, DoraEmbeddingVariant)
        ):
            kind = type(variant or module).__name__
            raise AdapterError(
                f"merging does not know {kind}", where=f"{self.where}: {path}", fix="merge it with PEFT"
            )
        embedding = type(module) is lora.Embedding
        if embedding:
            shapes = [
                (f"{path}.lora_embedding_{x}", getattr(module, f"lora_embedding_{x}")[NAME]) for x in "AB"
            ]
        else:
            shapes = [(f"{path}.lora_{x}.weight", getattr(module, f"lora_{x}")[NAME].weight) for x in "AB"]
        a, b = (self.take(name, tuple(tensor.shape)) for name, tensor in shapes)
        self.tensors.pop(PREFIX + path + COPY, None)  # `base_copies` gives it
        magnitude = None
        if variant is not None:
            magnitude = self.take(f"{path}.lora_magnitude_vector", (b.shape[0],))
        transposed = embedding or bool(module.fan_in_fan_out)
        return LowRank(a, b, self.weight * module.scaling[NAME], transposed, magnitude)

    def experts(self, path: str, module: Any) -> LowRank:
        """LoRA on a tensor itself, as PEFT lays it out: A (rank * experts, in), B (out, rank * experts)."""
        a, b = (
            self.take(f"{path}.lora_{x}.weight", tuple(getattr(module, f"lora_{x}")[NAME].weight.shape))
            for x in "AB"
        )
        scale = self.weight * module.scaling[NAME]
        if module.get_param().ndim == 2:
            return LowRank(a, b, scale)
        count = module.num_experts
        by_expert = b.reshape(b.shape[0], -1, count).permute(2, 0, 1).contiguous()
        transposed = bool(getattr(module.get_base_layer(), "is_transposed", False))
        return LowRank(a.reshape(count, -1, a.shape[-1]), by_expert, scale, transposed)


def base_copies(folder: Path) -> dict[str, Tensor]:
    """Layers of the base that a PEFT folder holds beside the LoRA on them, by stock parameter name."""
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        return {
            key.removeprefix(PREFIX).removesuffix(COPY) + ".weight": file.get_tensor(key)
            for key in file.keys()  # noqa: SIM118
            if key.endswith(COPY)
        }


def as_matrix(tensor: Tensor) -> Tensor:
    """The same values as rows of the last dimension; a vector is one row."""
    return tensor.reshape(-1, tensor.shape[-1]) if tensor.ndim else tensor.reshape(1, 1)


def _is_lora(config: Any) -> bool:
    return str(getattr(config.peft_type, "value", config.peft_type)) == "LORA"


def _require_kind(config: Any, where: str) -> None:
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind not in ("LORA", "TRAINABLE_TOKENS"):
        raise AdapterError(
            f"merging knows LoRA and trained tokens, not {kind}", where=where, fix="merge it with PEFT"
        )


def _require_sum(config: Any, weight: float, where: str) -> None:
    """Refuses what is not the base plus something that this file knows."""
    plain = type(config)()
    for field in dataclasses.fields(config):
        value, usual = getattr(config, field.name), getattr(plain, field.name)
        if field.name not in HARMLESS | COMPUTED and value and value != usual:
            raise AdapterError(
                f"merging does not know {field.name}={value!r}", where=where, fix="merge it with PEFT"
            )
    init = getattr(config, "init_lora_weights", True)
    if init not in PLAIN_INITS:
        raise AdapterError(
            f"init_lora_weights={init!r} changes the base itself, which is not in this folder",
            where=where,
            fix="convert it to plain LoRA: PEFT's "
            "save_pretrained(path_initial_model_for_weight_conversion=…)",
        )
    if weight != 1.0 and getattr(config, "use_dora", False):
        raise AdapterError(
            "a weight on a DoRA adapter has no meaning: its magnitudes belong to the whole sum",
            where=where,
            fix="merge it with weight 1, alone",
        )
