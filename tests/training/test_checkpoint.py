"""An optimiser's checkpoint whose content is damaged is named before a step is made with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lockadapt.errors import VerificationError
from lockadapt.training.checkpoint import load_optimizer, save_optimizer

TENSORS, OTHER = "optimizer.safetensors", "optimizer.json"


def pair() -> tuple[torch.optim.Optimizer, Any]:
    parameters = [torch.nn.Parameter(torch.ones(4, 3)), torch.nn.Parameter(torch.ones(3, 4))]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    optimizer.step()
    return optimizer, scheduler


def without(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        save_file({k: v for k, v in load_file(folder / TENSORS).items() if k != name}, folder / TENSORS)

    return damage


def turned(folder: Path) -> None:
    tensors = load_file(folder / TENSORS)
    save_file({**tensors, "0.exp_avg": tensors["0.exp_avg"].T.contiguous()}, folder / TENSORS)


def no_betas(folder: Path) -> None:
    other = json.loads((folder / OTHER).read_text())
    del other["param_groups"][0]["betas"]
    (folder / OTHER).write_text(json.dumps(other))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("0.exp_avg_sq"), "'exp_avg_sq' is kept of only one"),
        (without("1.step"), "'step' is kept of only one"),
        (turned, "'exp_avg' of parameter 0 has the shape"),
        (no_betas, "param_groups.0 has no 'betas'"),
    ],
)
def test_damage_is_named(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    save_optimizer(*pair(), tmp_path)
    load_optimizer(*pair(), tmp_path)
    damage(tmp_path)
    with pytest.raises(VerificationError, match=message):
        load_optimizer(*pair(), tmp_path)
