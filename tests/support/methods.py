"""Stages by TRL on tiny models without a run folder, and what plain TRL makes of the same rows."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from lockadapt.architectures.assemble import Assembled
from lockadapt.building.stages import MethodSettings
from lockadapt.data.encode import Encoded, distinct_images
from lockadapt.data.model_encoder import model_encoder
from lockadapt.data.pixels import pixel_inputs
from lockadapt.data.readers import Source, read_samples
from lockadapt.features.inputs import memory_features
from lockadapt.objectives import Objective, Preference
from lockadapt.training.config import GroundingConfig
from lockadapt.training.methods.locked import MethodSetup
from lockadapt.tuning.adapters import LoraSettings, attach_adapters
from tests.support.preferences import preference_rows
from tests.support.rows import vqa_samples

RATE = {"learning_rate": 1e-2, "lr_scheduler_type": "constant", "logging_steps": 1, "use_cpu": True}


def adapted(assembled: Assembled) -> Any:
    """A copy of the model with LoRA that is no identity, the same at every call."""
    torch.manual_seed(1)
    model = attach_adapters(copy.deepcopy(assembled.model), LoraSettings(rank=4))
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def tiny_pairs(assembled: Assembled, folder: Path) -> tuple[Any, list[Encoded]]:
    """A model and its rows of preferences."""
    model, section = adapted(assembled), preference_rows(folder)
    samples = read_samples("jsonl", Source(section["path"], "preference", images=section["images"]))
    return model, Preference().encode(model_encoder(model, assembled.processor, None), samples).encoded


def tiny_questions(assembled: Assembled, folder: Path) -> tuple[Any, list[Encoded]]:
    """A model and its rows of questions."""
    model = adapted(assembled)
    encoder = model_encoder(model, assembled.processor, None)
    return model, encoder.encode(vqa_samples(folder)).encoded


def setup_of(
    assembled: Assembled, model: Any, rows: list[Encoded], folder: Path, objective: Objective, **method: Any
) -> MethodSetup:
    """A stage that trains LoRA alone, as plain TRL does, on features of images."""
    config = GroundingConfig(
        str(folder), train_parts=["lora"], max_steps=4, per_device_train_batch_size=4, **RATE
    )
    given = {"name": "dpo", "trl": {}, "rewards": {}, "guard_steps": 30, "max_kl": 10.0, **method}
    features = memory_features(model, pixel_inputs(assembled.processor, 10**6))
    features.fill(distinct_images(rows).values())
    return MethodSetup(
        objective.kind,
        objective,
        model,
        assembled.processor,
        rows,
        [],
        features,
        config,
        MethodSettings(**given),
        [],
    )


def logged(trainer: Any, key: str) -> list[float]:
    """A number of each line that a trainer logged."""
    return [line[key] for line in trainer.state.log_history if key in line]
