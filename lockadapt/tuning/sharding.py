"""Shares the LLM's blocks among processes (FSDP2), and brings shared tensors together again.

Only blocks are shared: everything else (tower, projector, embeddings, heads) is whole on every process, as
without sharding. `torch.distributed.fsdp.fully_shard` itself is used, as Accelerate leaves 4-bit weights
out, and silently does not shard at all on CPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from lockadapt import processes
from lockadapt.architectures import architecture_of, class_name
from lockadapt.architectures.base import unwrap_model
from lockadapt.architectures.blocks import blocks_paths
from lockadapt.errors import RecipeError, VerificationError

SHARDING = "training.sharding"


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was called on a model."""
    return next(_shared_modules(model), None) is not None


def is_shared(tensor: torch.Tensor) -> bool:
    """Whether each process holds only a part of a tensor."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


@torch.no_grad()
def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor that processes share, detached; all of them must call.

    Args:
        tensor: any; one that is whole here is only detached.

    Returns:
        On the device where the part is.
    """
    return tensor.detach().full_tensor() if is_shared(tensor) else tensor.detach()  # type: ignore[attr-defined]


@torch.no_grad()
def own_part(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Takes from a whole tensor what this process holds of one that is shared.

    Args:
        value: whole, of the same shape as `like`.
        like: shared or not.

    Returns:
        A tensor that is shared as `like` is, or the value itself.
    """
    from torch.distributed.tensor import distribute_tensor

    if not is_shared(like):
        return value
    mesh: Any = like.device_mesh  # type: ignore[attr-defined]
    return distribute_tensor(
        value.to(like.device),
        mesh,
        like.placements,  # type: ignore[attr-defined]
        src_data_rank=None,
    )


def refuse_unshardable(model: nn.Module) -> None:
    """Refuses what was not tried sharded.

    Args:
        model: a Transformers model, wrapped by PEFT or not.

    Raises:
        RecipeError: its blocks are 8-bit, show images beside the text or have adapters of stacked experts.
    """
    reason, fix = "", "use sharding: none"
    if any(type(parameter).__name__ == "Int8Params" for parameter in model.parameters()):
        reason, fix = "8-bit layers cannot be sharded", "use quantization: nf4, or sharding: none"
    elif architecture_of(model).beside is not None:
        reason = f"the blocks of {class_name(unwrap_model(model))} hold its projector"
    elif any(hasattr(module, "parameter_name") for module in model.modules()):
        reason = "adapters of stacked experts were not tried sharded"
    if reason:
        raise RecipeError(reason, where=SHARDING, fix=fix)


def shard(model: nn.Module) -> int:
    """Shares the LLM's blocks among all processes, in place; all of them must call.

    What trains in the blocks starts from the first process's weights. Gradients of shared tensors are summed
    over processes in the backward pass.

    Args:
        model: the same on every process, ready to train.

    Returns:
        How many tensors are shared.

    Raises:
        VerificationError: torch left a tensor of a block as it was.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    base = unwrap_model(model)
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(kind, (processes.count(),))
    for path in blocks_paths(base):
        blocks = base.get_submodule(path)
        for module in blocks.modules():
            _keep_state(module)
        for parameter in blocks.parameters():
            if parameter.requires_grad:
                processes.share_first(parameter)
        for block in blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
        # The root only orders the blocks' exchanges: it is called whenever they are, by itself or by others.
        root = base.get_submodule(path.rpartition(".")[0])
        fully_shard(root, mesh=mesh, ignored_params=_outside(root, blocks))
    for module in _shared_modules(model):
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    shared = [p for path in blocks_paths(base) for p in base.get_submodule(path).parameters()]
    if not shared or not all(map(is_shared, shared)):
        raise VerificationError(
            f"{sum(not is_shared(p) for p in shared)} of {len(shared)} tensors of the blocks are whole",
            where=SHARDING,
            fix="use sharding: none, and report it",
        )
    if kind == "cuda":
        _move_rest(base)
    return len(shared)


def quantization_states(base: nn.Module) -> dict[str, Any]:
    """What bitsandbytes keeps beside 4-bit weights, by name of the weight; shared weights lose their own."""
    states = {}
    for name, module in base.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        state = state if state is not None else getattr(module, "quant_state", None)
        if state is not None:
            states[f"{name}.weight"] = state
    return states


@torch.no_grad()
def gather_trained(model: nn.Module) -> None:
    """Makes what trains whole on every process again, on the CPU; the model cannot be called any more.

    Args:
        model: its training has ended. All processes must call.
    """
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.requires_grad and is_shared(parameter):
                module._parameters[name] = nn.Parameter(whole(parameter).cpu())


def _shared_modules(model: nn.Module) -> Iterator[nn.Module]:
    from torch.distributed.fsdp import FSDPModule

    return (module for module in model.modules() if isinstance(module, FSDPModule))


def _keep_state(module: nn.Module) -> None:
    """Notes on a 4-bit layer what its weight will forget; bitsandbytes takes it from there."""
    state = getattr(getattr(module, "weight", None), "quant_state", None)
    if state is not None:
        module.quant_state = state
        if torch.cuda.is_available():
            state.to(torch.device("cuda", torch.cuda.current_device()))


def _outside(root: nn.Module, blocks: nn.Module) -> set[nn.Parameter]:
    inside = set(blocks.parameters())
    return {parameter for parameter in root.parameters() if parameter not in inside}


@torch.no_grad()
def _move_rest(base: nn.Module) -> None:
    """Moves what is not shared to this process's GPU."""
    device = torch.device("cuda", torch.cuda.current_device())
    for tensor in (*base.parameters(), *base.buffers()):
        if not is_shared(tensor):
            tensor.data = tensor.data.to(device)
