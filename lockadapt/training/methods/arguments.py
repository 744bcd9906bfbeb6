"""TRL's arguments of a stage: those of a supervised one, and the recipe's `trl`."""

from __future__ import annotations

import math
from typing import Any

from transformers.trainer_utils import IntervalStrategy

from lockadapt.errors import RecipeError
from lockadapt.training.config import GroundingConfig

SHARED = (
    *("output_dir", "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay"),
    *("max_grad_norm", "optim", "seed", "logging_steps", "eval_strategy", "eval_steps", "save_strategy"),
    *("save_steps", "save_total_limit", "bf16", "fp16", "use_cpu", "dataloader_num_workers", "report_to"),
)
"""Arguments that a stage has from its recipe whatever trains it."""


def trl_arguments(
    config: GroundingConfig, trl: dict[str, Any], every: int = 1, best: str | None = None
) -> dict[str, Any]:
    """The keywords of a TRL config.

    Args:
        config: of the stage, as a supervised one would have it.
        trl: fields that the recipe sets.
        every: optimiser steps that belong together: checkpoints lie between them.
        best: which number of a validation selects the best checkpoint.

    Returns:
        Keywords.
    """
    validated = config.eval_strategy != IntervalStrategy.NO
    given = {name: getattr(config, name) for name in SHARED}
    given["save_steps"] = math.ceil(config.save_steps / every) * every
    if validated and best is not None:
        given |= {"load_best_model_at_end": True, "metric_for_best_model": best}
        given["greater_is_better"] = not best.endswith("loss")
        if given["save_steps"] % config.eval_steps:  # type: ignore[operator]
            raise RecipeError(
                f"checkpoints every {given['save_steps']} steps are not all validated",
                where="training.validate_every",
                fix=f"make it divide {given['save_steps']}, or give the stage no more than that many steps",
            )
    return {
        **given,
        "gradient_checkpointing": bool(config.activation_checkpointing),
        "eval_on_start": validated,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        **trl,
    }
