"""Keys of a PEFT file by the names of today's Transformers, and the base's own layers that PEFT saves too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lockadapt.errors import VerificationError

PREFIX = "base_model.model."
"""Before every stock name in a PEFT file."""

COPY = ".base_layer.weight"
"""Ends the key of a layer of the base that LoRA lies on: PEFT saves embeddings and heads with their LoRA."""


def current_keys(model: Any, config: Any, saved: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Renames the tensors of an adapter as PEFT does when it loads one that was trained on older classes.

    Args:
        model: the stock class, with or without PEFT around it.
        config: PEFT's, of the adapter.
        saved: the file's tensors, by their keys with `PREFIX`.
        name: of the adapter in the model.

    Returns:
        The tensors by the names of today's Transformers, without PEFT's own endings.
    """
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers

    converted = convert_peft_adapter_state_dict_for_transformers(model, config, dict(saved), name)
    # Written before PEFT saved the vector by itself, it is called a layer's weight.
    return {
        key.removesuffix(".weight") if key.endswith("lora_magnitude_vector.weight") else key: tensor
        for key, tensor in converted.items()
    }


def require_copy(name: str, copy: Tensor, own: Tensor, where: str) -> None:
    """Requires a layer that an adapter brings beside its LoRA to be the base's own.

    Args:
        name: of the stock parameter.
        copy: the adapter's.
        own: the base's; in the coarser of both dtypes they must be equal.
        where: the adapter.

    Raises:
        VerificationError: it is another layer, which PEFT would put in the base's place.
    """
    same = copy.shape == own.shape and copy.is_floating_point() and own.is_floating_point()
    if same:
        coarse = max((copy.dtype, own.dtype), key=lambda dtype: torch.finfo(dtype).eps)
        same = torch.equal(copy.to(own.device, coarse), own.detach().to(coarse))
    if not same:
        raise VerificationError(
            f"brings {name} with it, which is not the base's",
            where=where,
            fix="use the base that the adapter was trained on, or merge it with PEFT",
        )
