"""Finds weights that are NaN or infinite before anything is computed with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lockadapt.errors import VerificationError
from lockadapt.models.sources import some


def require_finite(model: nn.Module, where: str) -> None:
    """Looks at every parameter once; of a quantized one at its scales, which its matrix was divided by.

    Args:
        model: as loaded, on any device; what is on the meta device is passed over.
        where: its folder or Hub id, for messages.

    Raises:
        VerificationError: names the tensors that are not finite.
    """
    wrong = [
        name for name, parameter in model.named_parameters() if not all(map(_finite, _values(parameter)))
    ]
    if wrong:
        raise VerificationError(
            f"weights are not finite (NaN or infinite): {some(wrong)}",
            where=where,
            fix="download the checkpoint again, or use another",
        )


def _values(parameter: Any) -> list[torch.Tensor]:
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        second = getattr(state, "state2", None)
        tensors = [state.absmax, state.offset, second.absmax if second is not None else None]
    else:
        tensors = [parameter.detach(), getattr(parameter, "SCB", None)]
    return [
        tensor
        for tensor in tensors
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and not tensor.is_meta
    ]


def _finite(tensor: torch.Tensor) -> bool:
    """A sum, which makes no copy, tells all but sums that overflow."""
    if bool(torch.isfinite(tensor.sum(dtype=torch.float32))):
        return True
    return bool(torch.isfinite(tensor).all())
