"""Trainer arguments of a stage: where a recipe's keys meet the names that Hugging Face gives them."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import torch

from lockadapt.building.experiment import Experiment
from lockadapt.building.stages import Stage
from lockadapt.errors import RecipeError, SetupError
from lockadapt.training.config import GroundingConfig

OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw-8bit": "adamw_8bit",
    "paged-adamw-8bit": "paged_adamw_8bit",
}
CHECKPOINTS_A_STAGE = 5
"""How often a stage is saved when the recipe does not say."""


def grounding_config(
    experiment: Experiment, stage: Stage, folder: Path, dtype: torch.dtype, validated: bool
) -> GroundingConfig:
    """Makes the trainer's arguments of one stage.

    Args:
        experiment: of the recipe.
        stage: which is trained.
        folder: for checkpoints.
        dtype: of the arithmetic.
        validated: whether there are validation rows.

    Returns:
        The arguments.

    Raises:
        SetupError: a package that `report_to` names is not installed.
        RecipeError: checkpoints are asked for at steps where nothing is validated, so that no best one can be
            kept.
    """
    training = experiment.training
    for package in training.report_to:
        if find_spec(package) is None:
            raise SetupError(
                f"{package} is not installed",
                where="training.report_to",
                fix=f"pip install {package}, or leave it out",
            )
    validate_every = min(training.validate_every or stage.steps, stage.steps)
    save_every = training.save_every or (
        validate_every if validated else math.ceil(stage.steps / CHECKPOINTS_A_STAGE)
    )
    if validated and save_every % validate_every:
        raise RecipeError(
            f"save_every is {save_every}, which is no multiple of validate_every, {validate_every}",
            where="training.save_every",
            fix="make it a multiple, so that the best model can be kept",
        )
    return GroundingConfig(
        output_dir=str(folder),
        train_parts=list(stage.train),
        lock_text=experiment.model.lock_text,
        max_steps=stage.steps,
        per_device_train_batch_size=stage.batch_size,
        per_device_eval_batch_size=experiment.evaluation.batch_size,
        gradient_accumulation_steps=stage.accumulation,
        learning_rate=stage.learning_rate,
        projector_learning_rate=stage.projector_learning_rate,
        retrieval_learning_rate=stage.retrieval_learning_rate,
        generation_learning_rate=stage.generation_learning_rate,
        lora_plus_ratio=experiment.recipe.lora.plus_ratio if experiment.recipe.lora else 1.0,
        lr_scheduler_type=training.schedule,
        warmup_steps=_warmup(training.warmup, stage.steps),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim=OPTIMIZERS[training.optimizer],
        activation_checkpointing=training.gradient_checkpointing,
        sharding=training.sharding,
        seed=training.seed,
        logging_steps=training.log_every,
        eval_strategy="steps" if validated else "no",
        eval_steps=validate_every,
        save_strategy="steps",
        save_steps=save_every,
        save_total_limit=training.keep_checkpoints,
        load_best_model_at_end=validated,
        metric_for_best_model="eval_loss" if validated else None,
        greater_is_better=False if validated else None,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        use_cpu=not torch.cuda.is_available(),
        dataloader_num_workers=experiment.data.workers,
        report_to=list(training.report_to) or "none",
        packing=experiment.data.packing,
        max_row_tokens=experiment.data.max_row_tokens,
        max_samples_per_image=experiment.data.max_samples_per_image,
        blind=experiment.blind,
        allow_special_tokens=experiment.data.allow_special_tokens,
    )


def _warmup(share: float, steps: int) -> float:
    """Trainer takes 1 or more as steps and less as a share, so a share is turned into steps here."""
    return float(math.ceil(share * steps))
