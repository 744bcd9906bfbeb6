"""Which fields of TRL's configs a recipe may set, and which keys of its own set others. Imports TRL late."""

from __future__ import annotations

import dataclasses
from difflib import get_close_matches
from typing import Any, Literal

Method = Literal["dpo", "grpo"]

OWN_KEYS = {
    "output_dir": "--output",
    "run_name": "--output",
    "max_steps": "`steps` of the stage",
    "num_train_epochs": "`epochs` of the stage",
    "per_device_train_batch_size": "`batch_size` of the stage",
    "per_device_eval_batch_size": "`evaluation.batch_size`",
    "gradient_accumulation_steps": "`accumulation` of the stage",
    "learning_rate": "`learning_rate` of the stage",
    "lr_scheduler_type": "`training.schedule`",
    "warmup_steps": "`training.warmup`",
    "warmup_ratio": "`training.warmup`",
    "weight_decay": "`training.weight_decay`",
    "max_grad_norm": "`training.max_grad_norm`",
    "optim": "`training.optimizer`",
    "seed": "`training.seed`",
    "data_seed": "`training.seed`",
    "logging_steps": "`training.log_every`",
    "eval_steps": "`training.validate_every`",
    "save_steps": "`training.save_every`",
    "save_total_limit": "`training.keep_checkpoints`",
    "report_to": "`training.report_to`",
    "gradient_checkpointing": "`training.gradient_checkpointing`",
    "bf16": "`model.dtype`",
    "fp16": "`model.dtype`",
    "max_length": "`data.max_length`",
    "dataloader_num_workers": "`data.workers`",
    "reward_weights": "`rewards.<name>.weight`",
}
"""Fields of TRL's configs that keys of a recipe set, and which."""

REFUSED = {
    "precompute_ref_log_probs": "the reference is always precomputed",
    "sync_ref_model": "the reference is the model at the start of the stage",
    "use_vllm": "lockadapt generates itself; docs/preference-and-reward.md says how to use vLLM",
    "use_transformers_continuous_batching": "it takes no images",
    "use_liger_kernel": "kernels that replace a model's layers are not proved",
    "pad_token": "rows are encoded as in supervised stages",
    "pad_to_multiple_of": "rows are encoded as in supervised stages",
    "truncation_mode": "rows are encoded as in supervised stages",
    "padding_free": "rows are encoded as in supervised stages",
    "chat_template_kwargs": "rows are encoded as in supervised stages",
    "model_init_kwargs": "the model is built from the recipe",
    "shuffle_dataset": "rows are always shuffled, each epoch by its number",
    "use_adaptive_entropy": "its state is not kept in checkpoints",
    "num_generations_eval": "validation rewards greedy answers",
    "log_completions": "answers are in `followed.jsonl` and the report",
}
"""Fields of TRL's configs that a run cannot set, and why."""

_GROUPS = ("eval_", "save_", "load_best", "metric_for", "greater_is", "push_to", "hub_", "fsdp", "deepspeed")
"""Beginnings of names of fields that checkpoints, validation and processes depend on."""


def trl_fields(method: Method) -> dict[str, Any]:
    """The fields of a method's config that a recipe may set, with their defaults.

    Args:
        method: of TRL.

    Returns:
        Default by name, in TRL's order.
    """
    from trl import DPOConfig, GRPOConfig

    config = {"dpo": DPOConfig, "grpo": GRPOConfig}[method]
    return {
        field.name: field.default
        for field in dataclasses.fields(config)  # type: ignore[arg-type]
        if field.init
        and field.name not in OWN_KEYS
        and field.name not in REFUSED
        and not _grouped(field.name)
    }


def field_problem(method: Method, name: str) -> str | None:
    """What is wrong with a field that a recipe sets; None: nothing.

    Args:
        method: of TRL.
        name: of the field.

    Returns:
        What to write instead, or None.
    """
    if name in OWN_KEYS:
        return f"is set by {OWN_KEYS[name]}"
    if name in REFUSED:
        return f"cannot be set: {REFUSED[name]}"
    known = trl_fields(method)
    if name in known:
        return None
    if _grouped(name):
        return "cannot be set: checkpoints, validation and processes are lockadapt's"
    near = get_close_matches(name, known, n=1)
    config = f"{method.upper()}Config"
    return f"TRL's {config} has no such field." + (f" Did you mean {near[0]}?" if near else "")


def _grouped(name: str) -> bool:
    return name.startswith(_GROUPS)
