"""Reports what is frozen and what trains; proves that frozen tensors are bit-identical after training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from lockadapt.architectures import layout_of
from lockadapt.architectures.absent_tower import absent_tower
from lockadapt.architectures.base import RETRIEVAL, ModelLayout, component_of, unwrap_model
from lockadapt.architectures.features import beside_text
from lockadapt.console import table_text
from lockadapt.errors import LockError
from lockadapt.tuning.sharding import quantization_states, whole
from lockadapt.tuning.training_autocast import training_autocast

ORDER = (
    *("tower", "projector", "llm", "head", "image tokenizer"),
    *("retrieval", "generation", "lora", "other"),
)
"""The component table's columns."""


@dataclass(frozen=True)
class ComponentRow:
    """One line of the component table; `dtype` lists all that occur, `adapters` counts adapted modules."""

    component: str
    parameters: int
    dtype: str
    state: str
    adapters: int


def component_table(model: nn.Module) -> list[ComponentRow]:
    """Component, parameters (packed 4-bit ones by true count), dtype, frozen or trained, LoRA modules."""
    rows: dict[tuple[str, bool], dict[str, Any]] = {}
    parts, base = layout_of(model), unwrap_model(model)
    states = quantization_states(base)
    for name, parameter in base.named_parameters():
        component, state = component_of(name, parts), states.get(name)
        row = rows.setdefault(
            (component, parameter.requires_grad), {"count": 0, "dtypes": {}, "adapters": set()}
        )
        row["count"] += true_size(parameter, state)
        row["dtypes"][_dtype_name(parameter, state)] = None
        if component == "lora":
            row["adapters"].add(name.split(".lora_")[0])
    absent = absent_tower(model)
    if absent is not None:
        rows["tower", False] = {
            "count": absent.record.parameters,
            "dtypes": {absent.record.dtype: None},
            "adapters": (),
        }
    return [
        ComponentRow(
            component,
            row["count"],
            "+".join(row["dtypes"]),
            "trained" if trained else "frozen",
            len(row["adapters"]),
        )
        for (component, trained), row in sorted(rows.items(), key=lambda item: ORDER.index(item[0][0]))
    ]


def component_text(rows: list[ComponentRow]) -> str:
    """The component table as aligned plain text."""
    head = ("component", "parameters", "dtype", "state", "LoRA modules")
    cells = [
        (r.component, f"{r.parameters:,}", r.dtype, r.state, str(r.adapters) if r.adapters else "-")
        for r in rows
    ]
    return table_text(head, cells, right=(1, 4))


def table_json(rows: list[ComponentRow]) -> list[dict[str, object]]:
    """The component table for `run.json`."""
    return [asdict(row) for row in rows]


def frozen_digests(model: nn.Module) -> dict[str, str]:
    """Digests every tensor that must not move: frozen parameters, quantization state, buffers.

    A tower that is not loaded is judged by its files.

    Args:
        model: a Transformers model, possibly wrapped by PEFT. Where processes share its tensors, all of them
            must call, and each digests the whole tensors.

    Returns:
        Full name -> hex digest over dtype, shape and bytes.
    """
    base, parts = unwrap_model(model), layout_of(model)
    trained = {name for name, parameter in base.named_parameters() if parameter.requires_grad}
    tensors: dict[str, torch.Tensor] = {}
    states = quantization_states(base)
    for name, parameter in base.named_parameters():
        if name not in trained and not _is_trainable_kind(name, parts):
            tensors[name] = parameter
            if name in states:
                tensors[f"{name}#absmax"] = states[name].absmax
    tensors.update(
        {name: buffer for name, buffer in base.named_buffers() if not _is_trainable_kind(name, parts)}
    )
    digests = {name: tensor_digest(tensor) for name, tensor in tensors.items()}
    absent = absent_tower(model)
    return digests if absent is None else {**digests, **absent.digests()}


def _is_trainable_kind(name: str, parts: ModelLayout) -> bool:
    """Whether lockadapt added a tensor, so that no source has it: LoRA, query tokens, retrieval module."""
    return (
        ".lora_" in name
        or ".trainable_tokens_" in name
        or name.startswith((*parts.retrieval, RETRIEVAL + "."))
    )


def tensor_digest(tensor: torch.Tensor) -> str:
    """SHA-256 over dtype, shape and raw bytes of a tensor on any device, of all of it where it is shared."""
    data = whole(tensor).cpu().contiguous()
    digest = hashlib.sha256(f"{data.dtype}{tuple(data.shape)}".encode())
    digest.update(data.reshape(-1).view(torch.uint8).numpy().data if data.numel() else b"")
    return digest.hexdigest()


def trained_digest(model: nn.Module) -> str:
    """SHA-256 over names and digests of every tensor that trains."""
    trained = {name: tensor_digest(p) for name, p in model.named_parameters() if p.requires_grad}
    return hashlib.sha256("\n".join(f"{k} {v}" for k, v in sorted(trained.items())).encode()).hexdigest()


def prove_locked(model: nn.Module, before: Mapping[str, str]) -> int:
    """Compares with the digests taken before training.

    Args:
        model: the model after training.
        before: as `frozen_digests` gave them.

    Returns:
        The number of tensors that were compared.

    Raises:
        LockError: a frozen tensor changed, vanished or appeared; names up to five.
    """
    after = frozen_digests(model)
    # What only trained in some stage is not part of the lock of the others.
    moved = [name for name in before if name in after and after[name] != before[name]]
    lost = [name for name in before if name not in after]
    if moved or lost:
        names = ", ".join((moved + lost)[:5])
        raise LockError(
            f"{len(moved)} frozen tensors changed and {len(lost)} vanished: {names}",
            where="lock proof",
            fix="do not use this run; report it, with run.json",
        )
    return len(before)


@torch.no_grad()
def text_logits(model: nn.Module, texts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What a model makes of texts without an image.

    Args:
        model: a Transformers model that takes such rows, possibly wrapped by PEFT.
        texts: token ids, int64 (tokens,) each.

    Returns:
        Logits (1, tokens, vocabulary) of each, on the CPU.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    made = []
    for text in texts:
        ids = text[None].to(device)
        given = beside_text(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, None)
        with training_autocast(model):
            made.append(model(**given, use_cache=False).logits.cpu())
    model.train(training)
    return made


def prove_text_locked(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> float:
    """Compares what a model makes of texts before and after training.

    Args:
        before: as `text_logits` gave them.
        after: of the same texts.

    Returns:
        The largest difference of a logit, which is 0.0.

    Raises:
        LockError: it is not.
    """
    change = max(float((a.double() - b.double()).abs().max()) for a, b in zip(before, after, strict=True))
    if change != 0.0:
        raise LockError(
            f"texts without an image have other logits than before training, by up to {change:.3g}",
            where="model.lock_text",
            fix="do not use this run; report it, with run.json",
        )
    return change


def true_size(parameter: nn.Parameter, state: Any = None) -> int:
    """Number of weights that a parameter stands for, also where two of them are packed into a byte.

    Args:
        parameter: any.
        state: bitsandbytes' of it; default: the one that the parameter itself has.

    Returns:
        The number.
    """
    state = state if state is not None else getattr(parameter, "quant_state", None)
    if state is not None and getattr(state, "shape", None) is not None:
        return int(torch.Size(state.shape).numel())
    return parameter.numel()


def _dtype_name(parameter: nn.Parameter, state: Any) -> str:
    if state is not None:
        return str(state.quant_type)
    if type(parameter).__name__ == "Int8Params":
        return "int8"
    return str(parameter.dtype).removeprefix("torch.")
