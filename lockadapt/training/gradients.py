"""How objectives pull on what they share: each one's gradient norm, and the cosine between any two."""

from __future__ import annotations

import itertools
import math

import torch
from torch import nn

from lockadapt.models.parts import component_of, parts_of, stock

SHARED = ("lora", "projector")


class GradientNotes:
    """One gradient an objective between two lines of metrics, on trained LoRA and projector.

    A gradient is what one micro-batch adds to `.grad`, divided as accumulation divides it. Those of several objectives
    come from neighbouring micro-batches, often from neighbouring steps, so cosines are of slightly different weights.
    """

    def __init__(self) -> None:
        self._found: dict[str, torch.Tensor] = {}

    def wants(self, objective: str) -> bool:
        """Whether this objective's gradient has not been taken since the last line."""
        return objective not in self._found

    def snapshot(self, model: nn.Module) -> torch.Tensor:
        """The shared gradients as they are, float32 (shared parameters,)."""
        parts = parts_of(model)
        pieces = [
            torch.zeros(p.numel(), device=p.device) if p.grad is None else p.grad.detach().float().flatten()
            for name, p in stock(model).named_parameters()
            if p.requires_grad and component_of(name, parts) in SHARED
        ]
        return torch.cat(pieces) if pieces else torch.zeros(1)

    def note(self, objective: str, model: nn.Module, before: torch.Tensor) -> None:
        """Remembers what has been added since `before`."""
        self._found[objective] = self.snapshot(model) - before

    def take(self) -> dict[str, float]:
        """`{"a/grad_norm", "b/grad_norm", "cosine/a-b"}` of what was found; starts anew."""
        norms = {name: float(gradient.norm()) for name, gradient in self._found.items()}
        logs = {f"{name}/grad_norm": norm for name, norm in norms.items()}
        for first, second in itertools.combinations(sorted(norms), 2):
            size = norms[first] * norms[second]
            dot = float(self._found[first] @ self._found[second])
            logs[f"cosine/{first}-{second}"] = dot / size if size > 0 else math.nan
        self._found = {}
        return {name: value for name, value in logs.items() if math.isfinite(value)}
