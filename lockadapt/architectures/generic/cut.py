"""Where a class's own way from pixels to image tokens is cut: modules whose outputs are kept and given back.

Outputs are read by hooks. While kept ones are given back, stand-ins are in the modules' places.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lockadapt.errors import AssemblyError

Leaves = dict[str, Tensor]
"""The tensors of a module's output by their path in it, such as `hidden_states.2`."""


@dataclass(frozen=True)
class Cut:
    """What is kept of modules' outputs.

    Attributes:
        paths: full paths of the modules.
        used: leaves that what follows the modules reads, by module.
        shapes: the outputs themselves by module, without their tensors.
    """

    paths: tuple[str, ...]
    used: tuple[tuple[str, ...], ...]
    shapes: tuple[Any, ...]

    def take(self, model: nn.Module, run: Callable[[], Any]) -> Leaves:
        """Runs what leads through the modules, and gives the used leaves of their outputs.

        Args:
            model: holds the modules.
            run: calls each of them once.

        Returns:
            Leaves by the number of their module and their path.
        """
        seen = seen_outputs(model, self.paths, run)
        return {
            f"{number}.{name}": leaves_of(output)[name]
            for number, (output, names) in enumerate(zip(seen, self.used, strict=True))
            for name in names
        }

    @contextlib.contextmanager
    def giving(self, model: nn.Module, kept: Mapping[str, Tensor]) -> Iterator[None]:
        """A block in which the modules give what was kept of them, and do not run.

        Args:
            model: holds the modules.
            kept: from `take`.
        """
        own = [model.get_submodule(path) for path in self.paths]
        try:
            for number, (path, module) in enumerate(zip(self.paths, own, strict=True)):
                leaves = {name: kept[f"{number}.{name}"] for name in self.used[number]}
                model.set_submodule(path, StandIn(module, self.shapes[number], leaves))
            yield
        finally:
            for path, module in zip(self.paths, own, strict=True):
                model.set_submodule(path, module)


class StandIn(nn.Module):
    """Gives kept tensors in a module's place; whoever asks it for anything else asks the module.

    Args:
        module: whose place it takes.
        shape: of the module's output, without its tensors.
        leaves: the tensors; none: as nothing reads the output but the next module, which does not run either,
            it passes on what it is given.
    """

    def __init__(self, module: nn.Module, shape: Any, leaves: Leaves) -> None:
        super().__init__()
        self.__dict__["own"] = module  # no submodule, which would be found under a second name
        self.shape, self.leaves = shape, leaves

    def forward(self, *given: Any, **named: Any) -> Any:
        """The output as the module gives it; copied at every call, as classes write into it."""
        if self.leaves:
            return filled(self.shape, {name: leaf.clone() for name, leaf in self.leaves.items()})
        first = next(iter(leaves_named(self.shape)))
        return filled(self.shape, {first: given[0] if given else next(iter(named.values()))})

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["own"], name)


@dataclass(frozen=True)
class _Place:
    """Stands where an output holds the tensor of this path."""

    name: str


@dataclass(frozen=True)
class _Fields:
    """Stands for a Transformers output of this class, or a dictionary."""

    kind: type[Any]
    items: Mapping[str, Any]


def find_cut(
    model: nn.Module, paths: Sequence[str], run: Callable[[], Any], result: Callable[[Any], Tensor]
) -> Cut:
    """Finds which of modules' outputs are used, by a gradient on them.

    Args:
        model: holds the modules; its parameters get no gradient.
        paths: full paths of the modules.
        run: calls each of them once.
        result: what `run` gives -> one number that depends on all that is computed.

    Returns:
        What is kept of them.

    Raises:
        AssemblyError: nothing of them is used, or they are not called once each.
    """
    leaves: list[Leaves] = [{} for _ in paths]
    shapes: list[Any] = [None for _ in paths]

    def cut(number: int) -> Callable[..., Any]:
        def replaced(_: nn.Module, __: Any, output: Any) -> Any:
            if shapes[number] is not None:
                raise AssemblyError("parts of its tower are called several times an image")
            shapes[number] = emptied(output)
            leaves[number] = {
                name: leaf.detach().clone().requires_grad_(leaf.is_floating_point())
                for name, leaf in leaves_of(output).items()
            }
            # Clones, as some classes go on in place, which leaves of a graph do not let them.
            return filled(shapes[number], {name: leaf.clone() for name, leaf in leaves[number].items()})

        return replaced

    handles = [
        model.get_submodule(path).register_forward_hook(cut(number)) for number, path in enumerate(paths)
    ]
    try:
        with torch.enable_grad():
            total = result(run())
            wanted = {
                (number, name): leaf
                for number, outputs in enumerate(leaves)
                for name, leaf in outputs.items()
                if leaf.requires_grad
            }
            if not wanted or not total.requires_grad:
                raise AssemblyError("its tower is not called as a module")
            gradients = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    used = {key for key, gradient in zip(wanted, gradients, strict=True) if gradient is not None}
    if not used:
        raise AssemblyError("nothing that its tower gives is used")
    # Whole numbers (masks) get no gradient, so they count as used where anything beside them is.
    return Cut(
        tuple(paths),
        tuple(
            tuple(
                name
                for name, leaf in outputs.items()
                if (number, name) in used
                or (not leaf.requires_grad and any(owner == number for owner, _ in used))
            )
            for number, outputs in enumerate(leaves)
        ),
        tuple(shapes),
    )


def seen_outputs(model: nn.Module, paths: Sequence[str], run: Callable[[], Any]) -> list[Any]:
    """What modules give while `run` calls them; classes may write into it afterwards.

    Args:
        model: holds the modules.
        paths: of the modules.
        run: calls the model once.

    Returns:
        The output of each module, in the order of `paths`.

    Raises:
        AssemblyError: a module is not called, or more than once.
    """
    seen: list[list[Any]] = [[] for _ in paths]

    def watch(number: int) -> Callable[..., None]:
        def note(_: nn.Module, __: Any, output: Any) -> None:
            seen[number].append(filled(emptied(output), leaves_of(output)))

        return note

    handles = [
        model.get_submodule(path).register_forward_hook(watch(number)) for number, path in enumerate(paths)
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    if any(len(calls) != 1 for calls in seen):
        raise AssemblyError("parts of its tower are not called once an image")
    return [calls[0] for calls in seen]


def leaves_of(output: Any, path: str = "") -> Leaves:
    """The tensors of a module's output by their path."""
    if isinstance(output, Tensor):
        return {path: output}
    leaves: Leaves = {}
    for name, value in _items(output):
        leaves |= leaves_of(value, f"{path}.{name}" if path else str(name))
    return leaves


def emptied(output: Any, path: str = "") -> Any:
    """An output with the paths of its tensors in their places."""
    if isinstance(output, Tensor):
        return _Place(path)
    items = {name: emptied(value, f"{path}.{name}" if path else str(name)) for name, value in _items(output)}
    if isinstance(output, Mapping):
        return _Fields(type(output), items)
    return type(output)(items.values()) if isinstance(output, (list, tuple)) else output


def leaves_named(shape: Any) -> list[str]:
    """The paths of an output's tensors, in its order."""
    if isinstance(shape, _Place):
        return [shape.name]
    if isinstance(shape, _Fields):
        shape = list(shape.items.values())
    values = shape if isinstance(shape, (list, tuple)) else ()
    return [name for value in values for name in leaves_named(value)]


def filled(shape: Any, leaves: Mapping[str, Tensor]) -> Any:
    """An output with tensors in its places; None where there is none."""
    if isinstance(shape, _Place):
        return leaves.get(shape.name)
    if isinstance(shape, _Fields):
        return shape.kind(**{name: filled(value, leaves) for name, value in shape.items.items()})
    if isinstance(shape, (list, tuple)):
        return type(shape)(filled(value, leaves) for value in shape)
    return shape


def _items(output: Any) -> list[tuple[Any, Any]]:
    if isinstance(output, Mapping):
        return list(output.items())
    return list(enumerate(output)) if isinstance(output, (list, tuple)) else []
