"""Parameter groups and their learning rates: LoRA's A and B, projector, heads, temperature."""

from __future__ import annotations

from typing import Any

from torch import nn

from lockadapt.architectures import architecture_of, layout_of
from lockadapt.architectures.base import component_of, unwrap_model
from lockadapt.training.config import GroundingConfig

TEMPERATURE = ("logit_scale", "logit_bias")
"""Parameters of the retrieval module that weight decay, which would pull them to 1, must not touch."""

NAMED_RATES = ("projector", "retrieval", "generation")
"""Groups whose learning rate is logged beside LoRA's."""


def parameter_groups(model: nn.Module, config: GroundingConfig) -> list[dict[str, Any]]:
    """What trains, in groups for an optimizer; groups without parameters are left out.

    LoRA's A (and what DoRA adds) and B have groups of their own, as their rates differ by the LoRA+ ratio
    (arXiv 2402.12354). Gates, norms and biases of cross-attention are not decayed.

    Args:
        model: a Transformers model, possibly wrapped by PEFT, whose `requires_grad` say what trains.
        config: names the rates and the weight decay.

    Returns:
        `{"params", "lr", "weight_decay", "group"}` each.
    """
    rest = config.projector_learning_rate
    retrieval = config.retrieval_learning_rate or rest
    groups: dict[str, dict[str, Any]] = {
        "lora_A": {"lr": config.learning_rate},
        "lora_B": {"lr": config.learning_rate * config.lora_plus_ratio},
        "projector": {"lr": rest},
        "gates": {"lr": rest, "weight_decay": 0.0},
        "retrieval": {"lr": retrieval},
        "generation": {"lr": config.generation_learning_rate or rest},
        "temperature": {"lr": retrieval, "weight_decay": 0.0},
    }
    base, layout = unwrap_model(model), layout_of(model)
    beside = architecture_of(model).beside is not None
    for name, parameter in base.named_parameters():
        if parameter.requires_grad:
            group = _group(name, component_of(name, layout))
            if group == "projector" and beside and parameter.dim() < 2:
                group = "gates"
            groups[group].setdefault("params", []).append(parameter)
    return [
        {"weight_decay": config.weight_decay, "group": name, **group}
        for name, group in groups.items()
        if "params" in group
    ]


def learning_rates(groups: list[dict[str, Any]]) -> dict[str, float]:
    """`{"projector_learning_rate": …}` of the groups that metrics name, as they stand."""
    return {f"{g['group']}_learning_rate": g["lr"] for g in groups if g.get("group") in NAMED_RATES}


def _group(name: str, component: str) -> str:
    if component == "lora":
        return "lora_B" if ".lora_B." in name else "lora_A"
    return "temperature" if name.rsplit(".", 1)[-1] in TEMPERATURE else component
