"""What cannot be sharded is refused with a reason; tests/training/test_sharding.py shards."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from lockadapt.architectures.assemble import Assembled
from lockadapt.errors import RecipeError
from lockadapt.tuning.adapters import LoraSettings, attach_adapters
from lockadapt.tuning.sharding import is_sharded, own_part, refuse_unshardable, whole
from tests.support.command import lockadapt
from tests.support.runs import recipe, recipe_file, values


class Int8Params(nn.Parameter):
    """As bitsandbytes calls its weights."""


def test_what_cannot_be_sharded_is_refused(assembled: Assembled) -> None:
    model = attach_adapters(copy.deepcopy(assembled.model), LoraSettings(rank=2))
    refuse_unshardable(model)
    layer = model.get_submodule("base_model.model.model.language_model.layers.0.mlp.up_proj")
    layer.parameter_name = "weight"  # type: ignore[assignment]
    with pytest.raises(RecipeError, match="stacked experts"):
        refuse_unshardable(model)
    model.eight = Int8Params(torch.zeros(2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(RecipeError, match="8-bit layers"):
        refuse_unshardable(model)


def test_eight_bit_optimisers_are_refused_with_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="8-bit optimisers cannot be sharded"):
        recipe(tmp_path, "training.sharding=fsdp", "training.optimizer=adamw-8bit")


def test_alone_everything_is_whole() -> None:
    tensor = torch.arange(3.0, requires_grad=True)
    assert not is_sharded(nn.Linear(2, 2))
    assert not whole(tensor).requires_grad
    assert own_part(tensor, torch.zeros(3)) is tensor


def test_restarts_need_processes(tmp_path: Path) -> None:
    file = recipe_file(tmp_path, values(tmp_path, tmp_path))
    done = lockadapt("train", file, "-o", tmp_path / "out", "--max-restarts", "1")
    assert done.returncode == 2
    assert "--max-restarts: needs --processes" in done.stderr
    assert not (tmp_path / "out").exists()
