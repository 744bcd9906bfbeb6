"""lockadapt gives a frozen language model eyes. The public names; each is imported when it is first used.

Everything else in the package is private: it may change without notice. See docs/python.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lockadapt.version import __version__

if TYPE_CHECKING:
    from lockadapt import errors
    from lockadapt.api.results import EvaluationResult, ExportResult, MergeResult, VerifyResult
    from lockadapt.api.steps import evaluate, export, load_recipe, merge, train, verify
    from lockadapt.architectures.assemble import assemble
    from lockadapt.attaching.attach import attach
    from lockadapt.evaluation.predictor import Predictor
    from lockadapt.runs.run import load_run
    from lockadapt.training.config import GroundingConfig
    from lockadapt.training.loop import TrainResult
    from lockadapt.training.trainer import GroundingTrainer
    from lockadapt.tuning.adapters import LoraSettings, lora_config
    from lockadapt.tuning.freeze_tower_mode import keep_tower_still

__all__ = [
    "EvaluationResult",
    "ExportResult",
    "GroundingConfig",
    "GroundingTrainer",
    "LoraSettings",
    "MergeResult",
    "Predictor",
    "TrainResult",
    "VerifyResult",
    "__version__",
    "assemble",
    "attach",
    "errors",
    "evaluate",
    "export",
    "keep_tower_still",
    "load_recipe",
    "load_run",
    "lora_config",
    "merge",
    "train",
    "verify",
]

_HOMES = {
    "EvaluationResult": "lockadapt.api.results",
    "ExportResult": "lockadapt.api.results",
    "GroundingConfig": "lockadapt.training.config",
    "GroundingTrainer": "lockadapt.training.trainer",
    "LoraSettings": "lockadapt.tuning.adapters",
    "MergeResult": "lockadapt.api.results",
    "Predictor": "lockadapt.evaluation.predictor",
    "TrainResult": "lockadapt.training.loop",
    "VerifyResult": "lockadapt.api.results",
    "assemble": "lockadapt.architectures.assemble",
    "attach": "lockadapt.attaching.attach",
    "evaluate": "lockadapt.api.steps",
    "export": "lockadapt.api.steps",
    "keep_tower_still": "lockadapt.tuning.freeze_tower_mode",
    "load_recipe": "lockadapt.api.steps",
    "load_run": "lockadapt.runs.run",
    "lora_config": "lockadapt.tuning.adapters",
    "merge": "lockadapt.api.steps",
    "train": "lockadapt.api.steps",
    "verify": "lockadapt.api.steps",
}
"""Module of each name. No room may be called as one, as importing that would hide the name."""


def __getattr__(name: str) -> Any:
    # Lazy, so that `lockadapt --help` imports neither torch nor transformers.
    if name == "errors":
        return import_module("lockadapt.errors")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lockadapt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
