"""Counts the bytes of live tensors, real or fake, while code runs; remembers the largest sum."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from lockadapt.architectures.base import unwrap_model
from lockadapt.planning.sizes import named_tensors


class PeakTracker(TorchDispatchMode):
    """Within the block every tensor storage that an operation makes is counted until it is freed.

    What kernels allocate inside themselves is not seen, except where 4-bit weights are unpacked for a
    product.

    Args:
        vocabulary: floating-point tensors with this last dimension are labelled `logits`, others
            `activations`.

    Attributes:
        live: bytes by label now, `hold`'s included.
        segments: the largest sum so far, and its parts by label, of each stretch that `split` made.
    """

    def __init__(self, vocabulary: int | None = None) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.live: dict[str, int] = {}
        self.segments: list[tuple[int, dict[str, int]]] = [(0, {})]
        self._labels: dict[int, str] = {}
        self._sizes: dict[int, int] = {}
        self._references: dict[int, Any] = {}

    def hold(self, tensors: Iterable[torch.Tensor], label: str) -> None:
        """Counts tensors that are there already, or gives those that are counted another label."""
        for tensor in tensors:
            self._count(tensor, label)

    def ignore(self, tensors: Iterable[torch.Tensor]) -> None:
        """Leaves tensors that are there already, and views of them, out of the count."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            self._sizes[key], self._labels[key] = 0, "activations"
            self._references[key] = storage  # lives as long as the count, so that its place is nobody else's
            self.live.setdefault("activations", 0)

    def split(self) -> None:
        """Begins another stretch."""
        self.segments.append((0, {}))
        self._touch(0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operation, and counts what it made."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor):
                self._count(tensor, None)
        if func is _gemm_4bit():
            self._touch(args[2][0] * args[2][1] * args[0].element_size())
        return result

    def _count(self, tensor: torch.Tensor, label: str | None) -> None:
        storage = tensor.untyped_storage()
        # The C++ storage, which all views share; Python makes and drops wrappers of it.
        key = storage._cdata
        if key in self._sizes:
            if label is not None and self._labels[key] != label:
                self.live[self._labels[key]] -= self._sizes[key]
                self._labels[key] = label
                self.live[label] = self.live.get(label, 0) + self._sizes[key]
            return
        if label is None:
            wide = tensor.ndim > 0 and tensor.shape[-1] == self.vocabulary and tensor.is_floating_point()
            label = "logits" if wide else "activations"
        size = storage.nbytes()
        self._sizes[key], self._labels[key] = size, label
        self._references[key] = weakref.ref(storage, lambda _: self._forget(key))
        self.live[label] = self.live.get(label, 0) + size
        self._touch(0)

    def _forget(self, key: int) -> None:
        self.live[self._labels.pop(key)] -= self._sizes.pop(key)
        del self._references[key]

    def _touch(self, extra: int) -> None:
        total = sum(self.live.values()) + extra
        if total > self.segments[-1][0]:
            parts = {label: size for label, size in self.live.items() if size}
            if extra:
                parts["activations"] = parts.get("activations", 0) + extra
            self.segments[-1] = (total, parts)


@dataclass(frozen=True)
class StepPeak:
    """The largest moment of a training step in bytes, and its parts.

    `segments` holds that of the time until a block of the LLM gets its first gradient, and of the time after.
    """

    segments: tuple[tuple[int, dict[str, int]], ...]

    @property
    def total(self) -> int:
        """The larger one."""
        return max(self.segments, key=lambda segment: segment[0])[0]

    @property
    def parts(self) -> dict[str, int]:
        """Its `weights`, `gradients`, `logits` and `activations`."""
        return max(self.segments, key=lambda segment: segment[0])[1]


def step_peak(
    model: nn.Module,
    loss: Callable[[], torch.Tensor],
    accumulate: bool = False,
    batch: Iterable[torch.Tensor] = (),
) -> StepPeak:
    """Measures live bytes in a forward and backward, with all of the model's tensors; drops its gradients.

    Args:
        model: real, or fake inside its modes.
        loss: the forward; gives the scalar that `backward` starts from.
        accumulate: gradients of an earlier micro-batch are there already.
        batch: tensors that are not counted, as they wait outside of the step.

    Returns:
        The peak's segments.
    """
    # A dual encoder has no head, and no tensor as wide as one either.
    head = unwrap_model(model).get_output_embeddings()
    tracker = PeakTracker(None if head is None else head.weight.shape[0])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def arrived(parameter: torch.Tensor) -> None:
        if len(tracker.segments) == 1:
            tracker.split()
        # A function that several parameters enter may have no gradient for some of them.
        if parameter.grad is not None:
            tracker.hold([parameter.grad], "gradients")

    hooks = [parameter.register_post_accumulate_grad_hook(arrived) for parameter in trained]
    tracker.ignore(batch)
    tracker.hold((tensor for _, tensor in named_tensors(model)), "weights")
    try:
        if accumulate:
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
                tracker.hold([parameter.grad], "gradients")
        with tracker:
            loss().backward()
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in trained:
            parameter.grad = None
    return StepPeak(tuple(tracker.segments))


def _gemm_4bit() -> Any:
    """bitsandbytes' 4-bit product, where that package has been imported."""
    namespace = torch.ops.bitsandbytes
    return namespace.gemm_4bit.default if hasattr(namespace, "gemm_4bit") else None
