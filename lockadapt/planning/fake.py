"""Fake tensors: shapes, dtypes and devices without numbers, to train a model without weights by a step."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

REAL_ELEMENTS = 65_536
"""Floating-point tensors made from nothing stay real up to this size (positions, masks, scalars)."""


def fake(model: nn.Module) -> FakeTensorMode:
    """Replaces a meta model's tensors by fake ones that say that they are on the CPU.

    In place; ties are kept.

    Args:
        model: on the meta device.

    Returns:
        The mode that they belong to.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    known: dict[int, Any] = {}

    def faked(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in known:
            with mode:
                new = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, requires_grad=tensor.requires_grad)
                for name, value in vars(tensor).items():
                    setattr(new, name, faked_state(value))
            known[id(tensor)] = (new, tensor)  # the old one lives on, so that its id stays its own
        return known[id(tensor)][0]

    def faked_state(state: Any) -> Any:
        """bitsandbytes' records of scales."""
        if isinstance(state, torch.Tensor):
            return faked(state)
        if type(state).__name__ not in ("QuantState", "MatmulLtState"):
            return state
        if id(state) not in known:
            new = copy.copy(state)
            known[id(state)] = (new, state)
            for name, value in vars(state).items():
                setattr(new, name, faked_state(value))
        return known[id(state)][0]

    for module in model.modules():
        tables: Any = (module._parameters, module._buffers)
        for table in tables:
            for name, tensor in table.items():
                if tensor is not None and tensor.is_meta:
                    table[name] = faked(tensor)
        for name in ("quant_state", "state"):
            if name in vars(module):
                setattr(module, name, faked_state(vars(module)[name]))
    return mode


class FakeFloats(TorchDispatchMode):
    """Within the block whatever depends on a fake tensor is fake; token ids, masks and positions stay real.

    So code that looks at values (is there any padding? which positions are learned?) takes the way that it
    takes in a run, and a boolean mask still selects a known number of rows.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self.mode = mode

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operation on fake tensors if an input is fake or its result is large; else as it is."""
        kwargs = kwargs or {}
        tensors = [item for item in tree_flatten((args, kwargs))[0] if isinstance(item, torch.Tensor)]
        faked = any(isinstance(item, FakeTensor) for item in tensors)
        if not faked and (tensors or not _makes_large(func, args, kwargs)):
            return func(*args, **kwargs)
        if func in _INDEXED:
            args = (args[0], _positions(args[1]), *args[2:])
        with self.mode:
            if func is torch.ops.aten._grouped_mm.default:
                return _grouped(func, args, kwargs)
            return func(*args, **kwargs)


def _grouped(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The product of experts, whose shapes torch knows for bfloat16 only."""
    narrow = [arg.bfloat16() if torch.is_tensor(arg) and arg.is_floating_point() else arg for arg in args]
    product: torch.Tensor = func(*narrow, **kwargs)
    return product.to(args[0].dtype)


_INDEXED = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._unsafe_index.Tensor,
}


def _positions(indices: Any) -> list[Any]:
    """Real boolean masks as the positions that they select, so that the shape of the result is known."""
    positions: list[Any] = []
    for index in indices:
        if (
            isinstance(index, torch.Tensor)
            and index.dtype == torch.bool
            and not isinstance(index, FakeTensor)
        ):
            positions += index.nonzero(as_tuple=True)
        else:
            positions.append(index)
    return positions


def _makes_large(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    size = args[0] if args and isinstance(args[0], (list, tuple)) else kwargs.get("size")
    dtype = kwargs.get("dtype") or torch.get_default_dtype()
    return (
        isinstance(size, (list, tuple))
        and dtype.is_floating_point
        and torch.Size(size).numel() > REAL_ELEMENTS
    )
