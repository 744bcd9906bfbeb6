"""lockadapt gives a frozen language model eyes. The public names; each is imported when it is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lockadapt.version import __version__

if TYPE_CHECKING:
    from lockadapt.architectures.assemble import assemble
    from lockadapt.attaching.attach import attach
    from lockadapt.exports.merge import merge_run as merge
    from lockadapt.recipe.read import load_recipe
    from lockadapt.training.config import GroundingConfig
    from lockadapt.training.trainer import GroundingTrainer

__all__ = ["GroundingConfig", "GroundingTrainer", "__version__", "assemble", "attach", "load_recipe", "merge"]

_HOMES = {
    "attach": ("lockadapt.attaching.attach", "attach"),
    "assemble": ("lockadapt.architectures.assemble", "assemble"),
    "load_recipe": ("lockadapt.recipe.read", "load_recipe"),
    "GroundingConfig": ("lockadapt.training.config", "GroundingConfig"),
    "GroundingTrainer": ("lockadapt.training.trainer", "GroundingTrainer"),
    "merge": ("lockadapt.exports.merge", "merge_run"),
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `lockadapt --help` imports neither torch nor transformers.
    if name in _HOMES:
        from importlib import import_module

        module, attribute = _HOMES[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'lockadapt' has no attribute {name!r}")
