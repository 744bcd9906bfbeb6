"""Remembers a model as it was before the first adapter, and restores it: the same objects in their places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from lockadapt.models.four_bit import restore_switches, switches

_PEFT = ("peft_config", "_hf_peft_config_loaded")
"""Attributes that Transformers' PEFT integration sets on a model."""


@dataclass(frozen=True)
class Snapshot:
    """The module tree and the gradient flags of a model without adapters.

    Nothing of the base is ever written to: modules are wrapped or replaced, so that restoring is putting them
    back.

    Attributes:
        modules: every module by name.
        children: the modules directly below each of them.
        flags: every parameter, and whether it wanted a gradient.
        repacking: every 4-bit layer, and whether bitsandbytes may repack it.
    """

    modules: dict[str, nn.Module]
    children: dict[str, dict[str, nn.Module | None]]
    flags: tuple[tuple[nn.Parameter, bool], ...]
    repacking: tuple[tuple[nn.Module, bool], ...]

    @staticmethod
    def of(model: nn.Module) -> Snapshot:
        """How the model is now."""
        modules = dict(model.named_modules())
        # The model itself is not among them, so that a snapshot kept on it does not keep it alive.
        del modules[""]
        children = {name: dict(module._modules) for name, module in modules.items()}
        children[""] = dict(model._modules)
        flags = tuple((parameter, parameter.requires_grad) for parameter in model.parameters())
        return Snapshot(modules, children, flags, switches(model))

    def restore(self, model: Any) -> None:
        """Puts everything back; adapters, and parts that were added, are gone afterwards."""
        for name, children in self.children.items():
            module = self.modules[name] if name else model
            module._modules.clear()
            module._modules.update(children)
        self.restore_flags()
        restore_switches(self.repacking)
        for name in _PEFT:
            vars(model).pop(name, None)

    def restore_flags(self) -> None:
        """Gradient flags of the base alone."""
        for parameter, wanted in self.flags:
            parameter.requires_grad_(wanted)
