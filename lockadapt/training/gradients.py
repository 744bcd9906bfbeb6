"""How objectives pull on what they share: each one's gradient norm, and the cosine between any two."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from lockadapt.architectures import layout_of
from lockadapt.architectures.base import component_of, unwrap_model
from lockadapt.processes import add_up, count
from lockadapt.tuning.sharding import is_shared, whole

SHARED = ("lora", "projector")


class GradientNotes:
    """One gradient an objective between two lines of metrics, on trained LoRA and projector.

    A gradient is what one micro-batch adds to `.grad`, divided as accumulation divides it. Those of several
    objectives come from different micro-batches, the latest of each, so cosines are of slightly different
    weights.
    """

    def __init__(self) -> None:
        self._latest: dict[str, torch.Tensor] = {}
        self._new: set[str] = set()

    def wants(self, objective: str) -> bool:
        """Whether this objective's gradient has not been taken since the last line."""
        return objective not in self._new

    def snapshot(self, model: nn.Module) -> torch.Tensor:
        """The shared gradients as they are, float32 (shared parameters,); to be added up over processes."""
        parts = layout_of(model)
        pieces = [
            torch.zeros(p.numel(), device=p.device) if p.grad is None else _part(p.grad)
            for name, p in unwrap_model(model).named_parameters()
            if p.requires_grad and component_of(name, parts) in SHARED
        ]
        return torch.cat(pieces) if pieces else torch.zeros(1)

    def note(self, objective: str, model: nn.Module, before: torch.Tensor) -> None:
        """Remembers what has been added since `before`, over all processes, which must all call."""
        self._latest[objective] = add_up(self.snapshot(model) - before)
        self._new.add(objective)

    def state(self) -> tuple[dict[str, torch.Tensor], list[str]]:
        """The latest gradients by `gradient.NAME`, and whose are new since the last line."""
        return {f"gradient.{name}": gradient.cpu() for name, gradient in self._latest.items()}, sorted(
            self._new
        )

    def restore(self, tensors: Mapping[str, torch.Tensor], new: Sequence[str]) -> None:
        """Goes on from what `state` gave."""
        prefix = "gradient."
        self._latest = {
            k.removeprefix(prefix): gradient for k, gradient in tensors.items() if k.startswith(prefix)
        }
        self._new = set(new)

    def take(self) -> dict[str, float]:
        """`{"a/grad_norm", "b/grad_norm", "cosine/a-b"}` of what is new since the last call."""
        norms = {name: float(gradient.norm()) for name, gradient in self._latest.items()}
        logs = {f"{name}/grad_norm": norms[name] for name in sorted(self._new)}
        for first, second in itertools.combinations(sorted(norms), 2):
            size = norms[first] * norms[second]
            dot = float(self._latest[first] @ self._latest[second])
            if {first, second} & self._new:
                logs[f"cosine/{first}-{second}"] = dot / size if size > 0 else math.nan
        self._new = set()
        return {name: value for name, value in logs.items() if math.isfinite(value)}


def _part(gradient: torch.Tensor) -> torch.Tensor:
    """This process's part of a gradient, flat; of a shared tensor's, which is summed, an even part."""
    part = whole(gradient).float().flatten()
    return part / count() if is_shared(gradient) else part
